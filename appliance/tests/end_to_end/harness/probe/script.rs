//! What a client sends, from text.

/// Client flags, before the first option.
pub(super) const FLAGS_BYTES: usize = 4;
pub(super) const EXPORT_NAME: u32 = 1;
pub(super) const GO: u32 = 7;
/// No option that anybody knows.
pub(super) const PING: u32 = 0x7777;
/// The cookie of a FLUSH behind everything else.
pub(super) const PING_COOKIE: u64 = u64::MAX;

/// Which headers requests and replies have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Simple,
    Structured,
    Extended,
}

impl Style {
    /// What these options agree on.
    pub(super) fn of(options: &str) -> Self {
        match options {
            _ if options.contains("EXT") => Self::Extended,
            _ if options.contains("SR") => Self::Structured,
            _ => Self::Simple,
        }
    }
}

/// A request that was sent.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) cookie: u64,
    pub(super) command: u16,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Client flags and options: `OPTION [+BYTES of data | NAME [QUERY…]]`, a number for an option
/// without a name. `flags N` in the beginning are other client flags than both; `x` before a name
/// makes its length one too many, `long N` is a name of so many bytes, `raw` bytes in hexadecimal.
pub(super) fn options(text: &str) -> (Vec<u8>, Vec<u32>) {
    let mut steps: Vec<&str> = text.split(';').map(str::trim).collect();
    let flags = match steps[0].strip_prefix("flags ") {
        Some(flags) => number(flags),
        None => 3,
    };
    if steps[0].starts_with("flags ") {
        steps.remove(0);
    }
    let mut bytes = (flags as u32).to_be_bytes().to_vec();
    let mut sent = Vec::new();
    for step in steps {
        let (word, rest) = step.split_once(' ').unwrap_or((step, ""));
        if word == "raw" {
            let digits: Vec<u8> = rest.bytes().filter(u8::is_ascii_hexdigit).collect();
            let pairs = digits
                .chunks_exact(2)
                .map(|pair| std::str::from_utf8(pair).unwrap());
            bytes.extend(pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()));
            continue;
        }
        let option = option_number(word);
        let data = option_data(option, rest);
        bytes.extend(header(option, data.len() as u32));
        bytes.extend(data);
        sent.push(option);
    }
    (bytes, sent)
}

/// Client flags, these options, and STARTTLS.
pub(super) fn starttls(before: &str) -> Vec<u8> {
    let text = match before {
        "" => "STARTTLS".to_owned(),
        before => format!("{before}; STARTTLS"),
    };
    options(&text).0
}

pub(super) fn ping_option() -> Vec<u8> {
    header(PING, 0)
}

fn header(option: u32, len: u32) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn option_number(word: &str) -> u32 {
    let named = super::reaction::OPTIONS
        .iter()
        .find(|(_, name)| *name == word);
    named.map_or_else(|| number(word) as u32, |(number, _)| *number)
}

fn option_data(option: u32, rest: &str) -> Vec<u8> {
    if let Some(len) = rest.strip_prefix('+') {
        return vec![0x5a; number(len) as usize];
    }
    let mut words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
    if words.first().is_some_and(|word| word == "long") {
        let name = "n".repeat(number(&words[1]) as usize);
        words.splice(..2, [name]);
    }
    let lies = words.first().is_some_and(|word| word == "x");
    if lies {
        words.remove(0);
    }
    let name = words
        .first()
        .cloned()
        .unwrap_or_default()
        .replace("NUL", "\0");
    if option == EXPORT_NAME {
        return name.into_bytes();
    }
    let mut data = (name.len() as u32 + u32::from(lies)).to_be_bytes().to_vec();
    data.extend(name.bytes());
    let more = words.get(1..).unwrap_or_default();
    match option {
        6 | GO => {
            data.extend((more.len() as u16).to_be_bytes());
            more.iter()
                .for_each(|kind| data.extend((number(kind) as u16).to_be_bytes()));
        }
        9 | 10 => {
            data.extend((more.len() as u32).to_be_bytes());
            for query in more {
                data.extend((query.len() as u32).to_be_bytes());
                data.extend(query.bytes());
            }
        }
        _ => return Vec::new(),
    }
    data
}

/// Requests: `COMMAND[/FLAG…] OFFSET+LEN [=BYTE] [@COOKIE]`, a number for a command or flag without
/// a name. The payload of a write is of that byte; `=DISC`: of requests to disconnect.
pub(super) fn requests(style: Style, text: &str) -> (Vec<u8>, Vec<Asked>) {
    let mut bytes = Vec::new();
    let mut asked = Vec::new();
    for (index, step) in text.split(';').map(str::trim).enumerate() {
        let mut words = step.split_whitespace();
        let mut command = words.next().unwrap_or_default().split('/');
        let name = command.next().unwrap_or_default();
        if name == "badmagic" {
            bytes.extend([0x25; 32]);
            continue;
        }
        let flags = command.map(flag).fold(0, |all, flag| all | flag);
        let (mut cookie, mut fill, mut range) = (index as u64 + 1, "0xaa", (0, 0));
        for word in words {
            if let Some(text) = word.strip_prefix('@') {
                cookie = number(text);
            } else if let Some(text) = word.strip_prefix('=') {
                fill = text;
            } else {
                let (offset, len) = word.split_once('+').expect("OFFSET+LEN");
                range = (number(offset), number(len));
            }
        }
        let request = Asked {
            cookie,
            command: command_number(name),
            offset: range.0,
            len: range.1,
        };
        bytes.extend(request_header(style, flags, request));
        if request.command == 1 && request.len <= 64 << 20 {
            let mut payload = match fill {
                "DISC" => request_header(
                    style,
                    0,
                    Asked {
                        command: 2,
                        ..request
                    },
                ),
                byte => vec![number(byte) as u8],
            };
            payload = payload.repeat(request.len as usize / payload.len());
            payload.resize(request.len as usize, 0);
            bytes.extend(payload);
        }
        // With that flag the length is that of a payload.
        if style == Style::Extended && flags & flag("payload") != 0 && request.command != 1 {
            bytes.resize(bytes.len() + request.len as usize, 0);
        }
        asked.push(request);
    }
    let ping = Asked {
        cookie: PING_COOKIE,
        command: 3,
        offset: 0,
        len: 0,
    };
    bytes.extend(request_header(style, 0, ping));
    asked.push(ping);
    (bytes, asked)
}

fn request_header(style: Style, flags: u16, request: Asked) -> Vec<u8> {
    let wide = style == Style::Extended;
    let magic: u32 = if wide { 0x21e4_1c71 } else { 0x2560_9513 };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(request.command.to_be_bytes());
    bytes.extend(request.cookie.to_be_bytes());
    bytes.extend(request.offset.to_be_bytes());
    match wide {
        true => bytes.extend(request.len.to_be_bytes()),
        false => bytes.extend((request.len as u32).to_be_bytes()),
    }
    bytes
}

fn command_number(name: &str) -> u16 {
    const NAMES: [&str; 8] = [
        "read", "write", "disc", "flush", "trim", "cache", "zero", "status",
    ];
    let named = NAMES.iter().position(|known| *known == name);
    named.map_or_else(|| number(name) as u16, |number| number as u16)
}

fn flag(name: &str) -> u16 {
    const NAMES: [&str; 6] = ["fua", "nohole", "df", "one", "fast", "payload"];
    let named = NAMES.iter().position(|known| *known == name);
    named.map_or_else(|| number(name) as u16, |bit| 1 << bit)
}

/// A number, decimal or hexadecimal, with a unit perhaps; `max` is the largest; `a-b` their
/// difference.
pub(super) fn number(text: &str) -> u64 {
    if let Some((from, less)) = text.split_once('-') {
        return number(from) - number(less);
    }
    if text == "max" {
        return u64::MAX;
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).expect("hexadecimal digits");
    }
    let digits = text.trim_end_matches(['k', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "k" => 10,
        "M" => 20,
        "G" => 30,
        _ => 0,
    };
    digits.parse::<u64>().expect("a number") << shift
}
