//! Rules on whole replies, one row each, and replies of our server.

use super::*;
use crate::protocol::command_flag::{DF, REQ_ONE};

const STRUCTURED: HeaderStyle = HeaderStyle::Structured;

/// What the steps of a reply to a request for bytes 100 to 200 come to. `D a b` data, `H a b` hole,
/// `E` error, `e a` error at an offset, `S id len:status…` status, `N` nothing, `simple`; `!` ends.
fn reply(request: Request, style: HeaderStyle, steps: &str) -> String {
    let mut tracker = ReplyTracker::new(style, request, 100, &[1, 2]);
    for step in steps.split(',').map(str::trim) {
        let (step, done) = match step.strip_suffix('!') {
            Some(step) => (step, true),
            None => (step, false),
        };
        let words: Vec<&str> = step.split_whitespace().collect();
        match tracker_step(&mut tracker, &words, done, style) {
            Ok(ReplyProgress::More) => {}
            Ok(ReplyProgress::Done(Ok(()))) => return "ok".to_owned(),
            Ok(ReplyProgress::Done(Err(errno))) => return errno.name().to_owned(),
            Err(ReplyError::Malformed(what)) => return what.to_owned(),
            Err(other) => panic!("{other}"),
        }
    }
    "more".to_owned()
}

fn tracker_step(
    tracker: &mut ReplyTracker,
    words: &[&str],
    done: bool,
    style: HeaderStyle,
) -> Result<ReplyProgress, ReplyError> {
    let number = |word: &str| word.parse::<u64>().expect("a number");
    let zeros = [0; 200];
    let mut payload = Vec::new();
    let chunk = match *words {
        ["D", from, to] => Chunk::Data {
            offset: number(from),
            data: &zeros[..(number(to) - number(from)) as usize],
        },
        ["H", from, to] => Chunk::Hole {
            offset: number(from),
            len: (number(to) - number(from)) as u32,
        },
        ["E"] => Chunk::Error {
            errno: Errno::Io,
            offset: None,
            text: String::new(),
        },
        ["e", at] => Chunk::Error {
            errno: Errno::Io,
            offset: Some(number(at)),
            text: String::new(),
        },
        ["N"] => Chunk::None,
        ["S", id, ref extents @ ..] => {
            payload.extend_from_slice(&(number(id) as u32).to_be_bytes());
            for extent in extents {
                let (len, status) = extent.split_once(':').expect("len:status");
                payload.extend_from_slice(&(number(len) as u32).to_be_bytes());
                payload.extend_from_slice(&(number(status) as u32).to_be_bytes());
            }
            Chunk::parse(crate::protocol::chunk::BLOCK_STATUS, &payload)?
        }
        ["simple"] => {
            let kind = ReplyKind::Simple(None);
            return tracker.take(&ReplyHeader { cookie: 1, kind }, None);
        }
        ["echo", wrong] => {
            let kind = ReplyKind::Chunk {
                kind: 0,
                done,
                echo: Some(number(wrong)),
                payload: 0,
            };
            return tracker.take(&ReplyHeader { cookie: 1, kind }, Some(&Chunk::None));
        }
        _ => panic!("{words:?}"),
    };
    let kind = ReplyKind::Chunk {
        kind: 0,
        done,
        echo: (style == HeaderStyle::Extended).then_some(100),
        payload: 0,
    };
    tracker.take(&ReplyHeader { cookie: 1, kind }, Some(&chunk))
}

fn request(command: u16, flags: u16) -> Request {
    Request {
        flags,
        command,
        cookie: 1,
        offset: 100,
        length: 100,
    }
}

fn check(request: Request, style: HeaderStyle, table: &str) {
    for row in table.lines().filter(|row| !row.trim().is_empty()) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [rule, steps, expected] = cells[..] else {
            panic!("{row}")
        };
        assert_eq!(reply(request, style, steps), expected, "{rule}");
    }
}

#[test]
fn replies_to_reads() {
    let table = "
    one piece                | D 100 200!                  | ok
    an end of its own        | D 100 200, N!               | ok
    in any order             | H 150 200, D 100 120, D 120 150! | ok
    still coming             | D 100 200                   | more
    a gap                    | D 100 149, D 150 200!       | success with something missing
    nothing                  | N!                          | success with something missing
    an error makes up for it | D 100 149, E!               | EIO
    at an offset             | D 100 149, e 150, N!        | EIO
    and content may follow   | e 150, D 100 150, N!        | EIO
    but not over the error   | e 150, D 100 151            | content that overlaps
    overlap from the left    | D 100 150, D 149 200        | content that overlaps
    overlap from the right   | D 150 200, D 100 151        | content that overlaps
    the same twice           | D 100 150, H 100 150        | content that overlaps
    inside of another        | H 100 200, D 120 130        | content that overlaps
    around another           | D 120 130, H 100 200        | content that overlaps
    before the request       | D 99 200                    | content outside of the request
    behind the request       | D 100 201                   | content outside of the request
    far behind               | H 300 301                   | content outside of the request
    an error before it       | e 99                        | error outside of the request
    an error behind it       | e 200                       | error outside of the request
    an empty chunk inside    | N                           | empty chunk that is not the last
    status                   | S 1 100:0                   | status that breaks the request
    a simple reply           | simple                      | simple reply where chunks belong
    ";
    check(request(command::READ, 0), STRUCTURED, table);
    check(request(command::READ, 0), HeaderStyle::Extended, table);
}

#[test]
fn replies_to_reads_that_must_not_be_fragmented() {
    let table = "
    one piece            | D 100 200, N!        | ok
    one hole             | H 100 200!           | ok
    two pieces           | D 100 150, D 150 200 | fragments despite DF
    an error instead     | E!                   | EIO
    ";
    check(request(command::READ, DF), STRUCTURED, table);
}

#[test]
fn replies_to_block_status() {
    let table = "
    each context             | S 2 100:0, S 1 50:3 50:0!  | ok
    one is missing           | S 2 100:0!                 | success with something missing
    one twice                | S 2 100:0, S 2 100:0       | status of a context not asked for
    a stranger               | S 3 100:0                  | status of a context not asked for
    less than asked for      | S 1 10:0, S 2 20:0!        | ok
    the last reaches further | S 1 90:0 500:3, S 2 500:0! | ok
    but not the one before   | S 1 100:0 1:3              | status that breaks the request
    content                  | D 100 200                  | content in the reply to no READ
    an error                 | S 1 100:0, E!              | EIO
    a simple success         | simple                     | success with something missing
    ";
    check(request(command::BLOCK_STATUS, 0), STRUCTURED, table);
    let one = "
    one each                 | S 1 100:0, S 2 9:1!        | ok
    two                      | S 1 50:0 50:1              | status that breaks the request
    one too long             | S 1 101:0                  | status that breaks the request
    ";
    check(request(command::BLOCK_STATUS, REQ_ONE), STRUCTURED, one);
    let wide = "
    a compact chunk          | S 1 100:0                  | status that breaks the request
    ";
    check(
        request(command::BLOCK_STATUS, 0),
        HeaderStyle::Extended,
        wide,
    );
}

#[test]
fn replies_to_the_rest() {
    let table = "
    a simple reply  | simple     | ok
    an empty chunk  | N!         | ok
    an error        | E!         | EIO
    content         | H 100 101! | content in the reply to no READ
    a wrong echo    | echo 99!   | reply with the offset of another
    ";
    check(request(command::WRITE, 0), STRUCTURED, table);
    check(request(command::TRIM, 0), STRUCTURED, table);
}

#[test]
fn nothing_comes_behind_the_end() {
    let mut tracker = ReplyTracker::new(STRUCTURED, request(command::FLUSH, 0), 0, &[]);
    let done = tracker_step(&mut tracker, &["N"], true, STRUCTURED);
    assert_eq!(done, Ok(ReplyProgress::Done(Ok(()))));
    let more = tracker_step(&mut tracker, &["N"], true, STRUCTURED);
    assert!(more.is_err(), "{more:?}");
}

#[test]
fn a_read_of_nothing_is_complete_at_once() {
    let mut tracker = ReplyTracker::new(STRUCTURED, request(command::READ, 0), 0, &[]);
    let done = tracker_step(&mut tracker, &["N"], true, STRUCTURED);
    assert_eq!(done, Ok(ReplyProgress::Done(Ok(()))));
}

/// Every other byte alone: memory has a limit.
#[test]
fn a_reply_in_dust_is_refused() {
    let whole = Request {
        length: 1 << 20,
        ..request(command::READ, 0)
    };
    let mut tracker = ReplyTracker::new(STRUCTURED, whole, 1 << 20, &[]);
    let pieces = (0..1_u64 << 19)
        .take_while(|at| {
            let from = (100 + 2 * at).to_string();
            let to = (101 + 2 * at).to_string();
            tracker_step(&mut tracker, &["H", &from, &to], false, STRUCTURED).is_ok()
        })
        .count();
    assert_eq!(pieces, PIECES_MAX);
}
