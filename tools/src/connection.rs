//! `taipan connection …`: who is connected, and ending a connection.

use clap::Subcommand;
use taipan_engine::api::{ConnectionInfo, ConnectionList, ConnectionName, ConnectionState};
use taipan_engine::error::Error;
use taipan_engine::size::human;

use crate::cli::Target;
use crate::control::Control;
use crate::failure::Outcome;
use crate::output::human_seconds;
use crate::table::{Align, Table};

/// What to do with NBD connections.
#[derive(Debug, Subcommand)]
pub(crate) enum ConnectionCommand {
    /// List all connections.
    List,
    /// Close a connection. What was answered stays; what is not taken in yet is cancelled. Most
    /// clients connect again.
    Kick {
        /// Its name, the first column of the list.
        #[arg(value_parser = connection_name)]
        id: ConnectionName,
    },
}

fn connection_name(text: &str) -> Result<ConnectionName, Error> {
    text.parse()
}

/// Runs one subcommand.
pub(crate) fn run(target: &Target, command: &ConnectionCommand) -> Outcome<()> {
    let control = Control::new(target.control_socket())?;
    let form = target.form();
    match command {
        ConnectionCommand::List => form.print(&control.connections()?, list),
        ConnectionCommand::Kick { id } => {
            control.kick(*id)?;
            let answer = serde_json::json!({ "closed": id });
            form.print(&answer, |_| format!("connection {id} is closed\n"))
        }
    }
}

fn list(list: &ConnectionList) -> String {
    if list.connections.is_empty() {
        return "nobody is connected\n".to_owned();
    }
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("CLIENT", Align::Left),
        ("VOLUME", Align::Left),
        ("STATE", Align::Left),
        ("FOR", Align::Right),
        ("REQUESTS", Align::Right),
        ("ERRORS", Align::Right),
        ("READ", Align::Right),
        ("WRITTEN", Align::Right),
        ("IN FLIGHT", Align::Right),
        ("UNREAD", Align::Right),
        ("FEATURES", Align::Left),
    ]);
    for connection in &list.connections {
        table.row(row(connection));
    }
    table.render()
}

fn row(connection: &ConnectionInfo) -> [String; 12] {
    let volume = connection.volume.as_ref().map(|volume| {
        let snapshot = connection.snapshot.as_ref();
        snapshot.map_or_else(|| volume.to_string(), |name| format!("{volume}@{name}"))
    });
    let client = match &connection.identity {
        Some(identity) => format!("{} ({identity})", connection.client),
        None => connection.client.clone(),
    };
    let state = match connection.state {
        ConnectionState::Handshake => "handshake",
        ConnectionState::Joining => "joining",
        ConnectionState::Serving => "serving",
        ConnectionState::Closing => "closing",
    };
    [
        connection.id.to_string(),
        client,
        volume.unwrap_or_else(|| "-".to_owned()),
        state.to_owned(),
        human_seconds(connection.seconds),
        connection.requests.to_string(),
        connection.errors.to_string(),
        human(connection.read_bytes),
        human(connection.written_bytes),
        connection.in_flight.to_string(),
        human(connection.unsent_bytes),
        connection.features.join(" "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_a_line_for_each() {
        let one = ConnectionInfo {
            id: "0-3-1".parse().unwrap(),
            client: "10.0.0.7:40812".to_owned(),
            volume: None,
            snapshot: None,
            state: ConnectionState::Handshake,
            seconds: 3.0,
            requests: 5,
            errors: 1,
            read_bytes: 4096,
            written_bytes: 0,
            in_flight: 2,
            unsent_bytes: 0,
            features: vec!["structured_replies".to_owned()],
            identity: None,
        };
        let known = ConnectionInfo {
            identity: Some("cn:backup".to_owned()),
            ..one.clone()
        };
        let connections = vec![known];
        let shown = list(&ConnectionList { connections });
        assert!(shown.contains("10.0.0.7:40812 (cn:backup)  "), "{shown}");
        let connections = vec![one];
        let text = list(&ConnectionList { connections });
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.contains("0-3-1  10.0.0.7:40812  -       handshake"),
            "{text}"
        );
        assert!(list(&ConnectionList::default()).contains("nobody"));
    }
}
