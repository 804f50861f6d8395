// SPDX-License-Identifier: Apache-2.0
//! A server for webhooks on a port of its own: it answers, fails, or never answers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Answers,
    /// Answers half a second late.
    AnswersLate,
    /// Answers 429 to the first request, asking for three seconds; then answers.
    IsBusyFirst,
    /// Answers 500 to every request.
    Fails,
    /// Accepts connections and never answers.
    Hangs,
}

pub(crate) struct Server {
    address: IpAddr,
    pub port: u16,
    /// The posted bodies, in order.
    pub posted: Receiver<Value>,
    /// One for each connection.
    pub connected: Receiver<()>,
}

impl Server {
    /// Serves on loopback until the test ends.
    pub(crate) fn start(manner: Manner) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), manner)
    }

    /// The same on another address of this machine.
    pub(crate) fn start_at(address: IpAddr, manner: Manner) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (bodies, posted) = channel();
        let (connections, connected) = channel();
        thread::spawn(move || {
            let mut held = Vec::new();
            for (number, stream) in listener.incoming().map(Result::unwrap).enumerate() {
                // The test may have dropped its receiver.
                let _ = connections.send(());
                match manner {
                    Manner::Hangs => held.push(stream),
                    Manner::AnswersLate => {
                        thread::sleep(Duration::from_millis(500));
                        serve(stream, "200 OK", &bodies);
                    }
                    Manner::IsBusyFirst if number == 0 => {
                        serve(stream, "429 Too Many Requests\r\nretry-after: 3", &bodies);
                    }
                    Manner::Answers | Manner::IsBusyFirst => serve(stream, "200 OK", &bodies),
                    Manner::Fails => serve(stream, "500 Internal Server Error", &bodies),
                }
            }
        });
        Self { address, port, posted, connected }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}:{}/hook", self.address, self.port)
    }

    /// The next post, which must come soon.
    pub(crate) fn next(&self) -> Value {
        self.posted.recv_timeout(Duration::from_secs(60)).expect("nothing is posted")
    }
}

/// One request on a connection, which is then closed.
fn serve(stream: TcpStream, status: &str, bodies: &Sender<Value>) {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            None if line == "\r\n" => break,
            Some(_) | None => {}
        }
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let _ = bodies.send(serde_json::from_slice(&body).unwrap());
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    // The daemon may be gone.
    let _ = reader.get_mut().write_all(answer.as_bytes());
}
