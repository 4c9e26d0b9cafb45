//! The framing of an answer over HTTP/1, followed as it passes.
//!
//! Pingora refuses most of what is no chunked body, but not a chunk without a size: it takes an empty line for the last
//! chunk, and a client what came before for all there is. Where an answer has chunks, their sizes are looked at here
//! first. A body of any other kind is not looked at.

use memchr::memchr_iter;

use crate::http::chunked::Chunked;

/// Where in an answer the connection is.
#[derive(Debug)]
pub(super) enum Framing {
    /// In its header, of which this came before; empty where a header comes in one piece.
    Header(Vec<u8>),
    Chunks(Chunked),
    /// Where nothing is followed.
    Other,
}

/// Longer ones are refused when they are read.
const MOST_HEADER: usize = 1024 * 1024;

impl Default for Framing {
    fn default() -> Framing {
        Framing::Header(Vec::new())
    }
}

impl Framing {
    /// Takes in what was read next; returns how much of it may be handed on, which is less only if what follows is no
    /// chunk.
    pub fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self {
                Framing::Other => break,
                Framing::Chunks(chunks) => match chunks.pass(rest) {
                    Ok(_) => break,
                    Err(_) => return at,
                },
                Framing::Header(before) if before.is_empty() => match read(rest) {
                    Some((length, next)) => {
                        at += length;
                        *self = next;
                    }
                    None => {
                        before.extend_from_slice(rest);
                        break;
                    }
                },
                Framing::Header(before) => {
                    let known = before.len();
                    before.extend_from_slice(rest);
                    match read(before) {
                        Some((length, next)) => {
                            at += length - known;
                            *self = next;
                        }
                        None if before.len() > MOST_HEADER => *self = Framing::Other,
                        None => break,
                    }
                }
            }
        }
        bytes.len()
    }
}

/// The length of the header that the bytes begin with, and what follows it, once it is whole.
fn read(bytes: &[u8]) -> Option<(usize, Framing)> {
    let mut start = 0;
    let mut status = None;
    let mut chunked = false;
    for end in memchr_iter(b'\n', bytes) {
        let line = bytes[start..end].trim_ascii_end();
        start = end + 1;
        match status {
            // Empty lines before an answer are passed over, as Pingora does.
            None if line.is_empty() => {}
            None => status = Some(line.get(b"HTTP/1.1 ".len()..).unwrap_or_default()),
            Some(status) if line.is_empty() => {
                let next = match status {
                    [b'1', b'0', b'1', ..] => Framing::Other,
                    [b'1', ..] => Framing::default(),
                    _ if chunked => Framing::Chunks(Chunked::of_answer()),
                    _ => Framing::Other,
                };
                return Some((start, next));
            }
            Some(_) => chunked |= is_chunked(line),
        }
    }
    None
}

/// Whether a line of the header says that chunks follow.
fn is_chunked(line: &[u8]) -> bool {
    const NAME: &[u8] = b"transfer-encoding:";
    const CODING: &[u8] = b"chunked";
    let name = line.get(..NAME.len());
    let coding = line.len().checked_sub(CODING.len());
    name.is_some_and(|name| name.eq_ignore_ascii_case(NAME))
        && coding.is_some_and(|coding| line[coding..].eq_ignore_ascii_case(CODING))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-Encoding:  Chunked \r\nA: b\r\n\r\n";

    #[test]
    fn what_is_framed_well_passes() {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nX: transfer-encoding: chunked\r\n\r\n\r\n".to_owned(),
            "HTTP/1.1 101 Switching Protocols\r\nTransfer-Encoding: chunked\r\n\r\n\r\n".to_owned(),
            format!("{CHUNKED}5\r\nhello\r\nA ;x\r\n0123456789\r\n0  \r\nX: y\n\n\r\nmore"),
            format!("\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n{CHUNKED}1\r\na\r\n"),
            CHUNKED.replace('\r', "") + "1\r\n\n\r\n0\r\n\r\n",
        ] {
            let bytes = answer.as_bytes();
            assert_eq!(Framing::default().pass(bytes), bytes.len(), "{answer:?}");
        }
    }

    #[test]
    fn chunk_without_a_size_does_not_pass() {
        for chunks in [
            "\r\n",
            "5\r\nhello\r\n\r\n",
            ";x\r\n",
            " \r\n",
            "1\r\n\r\n\r\n0\r\n",
        ] {
            let early = "HTTP/1.1 100 Continue\r\n\r\n";
            for header in [CHUNKED.to_owned(), early.to_owned() + CHUNKED] {
                let answer = format!("{header}{chunks}");
                let passed = Framing::default().pass(answer.as_bytes());
                assert_eq!(passed, header.len(), "{answer:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_what_passes(
            body in "(([0-3] ?(;a)?)?\r\n[a-c\r]{0,3}\r\n){0,3}",
            cuts in prop::collection::vec(0_usize..120, 0..5),
        ) {
            let answer = format!("HTTP/1.1 103 X\r\n\r\n{CHUNKED}{body}");
            let bytes = answer.as_bytes();
            let is_good = Framing::default().pass(bytes) == bytes.len();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.min(&bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut framing = Framing::default();
            let in_pieces = cuts.windows(2).all(|cut| {
                let piece = &bytes[cut[0]..cut[1]];
                framing.pass(piece) == piece.len()
            });
            prop_assert_eq!(in_pieces, is_good);
        }
    }
}
