//! The chunked body of an HTTP/1 message, checked as it passes (RFC 9112 section 7.1). That of a request strictly: where it
//! ends, and that no other program could find another end.

use super::head::{self, Fault, Fault::Malformed};

/// Digits of a chunk's size: more than anybody needs, and no overflow.
const DIGITS: u32 = 15;
/// Bytes of all chunk extensions of a body. Nobody uses them; without a bound they cost much and carry nothing.
const EXTENSIONS: usize = 4096;
/// Bytes of the trailer section.
const TRAILERS: usize = 8192;

/// Where in its framing a body is.
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
    extensions: usize,
    /// For answers, of servers that were always understood: blanks may follow a size, and trailers are not looked at.
    lenient: bool,
    /// The trailer section so far, from its first line on.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { digits: u32, size: u64 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataReturn,
    DataEnd,
    Trailers,
    Over,
}

impl Default for State {
    fn default() -> State {
        State::Size { digits: 0, size: 0 }
    }
}

impl Chunked {
    /// The body of an answer: only what nobody can mean is an error.
    pub fn of_answer() -> Chunked {
        Chunked {
            lenient: true,
            ..Chunked::default()
        }
    }

    /// How many of these bytes, which follow those of the last call, belong to the body: all, unless it ends within them.
    ///
    /// # Errors
    /// When they are no chunked body, or its trailers hold a field that must not stand there.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Over {
            if let State::Data { left } = self.state {
                let rest = bytes.len() - at;
                let count = usize::try_from(left).map_or(rest, |left| left.min(rest));
                at += count;
                self.state = match left - count as u64 {
                    0 => State::DataReturn,
                    left => State::Data { left },
                };
                continue;
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    fn step(&mut self, byte: u8) -> Result<State, Fault> {
        match (self.state, byte) {
            (State::Size { digits, size }, digit) if digit.is_ascii_hexdigit() => {
                if digits == DIGITS {
                    return Err(Malformed("a chunk size with too many digits"));
                }
                let digit = char::from(digit).to_digit(16).unwrap_or_default();
                Ok(State::Size {
                    digits: digits + 1,
                    size: size << 4 | u64::from(digit),
                })
            }
            (State::Size { digits: 0, .. }, _) => Err(Malformed("a chunk without a size")),
            (State::Size { size, .. }, b';') => self.extend(size),
            (State::Size { size, .. }, b' ' | b'\t') if self.lenient => self.extend(size),
            (State::Size { size, .. } | State::Extension { size }, b'\r') => {
                Ok(State::SizeEnd { size })
            }
            (State::Size { .. }, _) => Err(Malformed("a chunk size that is no number")),
            (State::Extension { .. }, byte) if byte < b' ' && byte != b'\t' || byte == 0x7f => {
                Err(Malformed("a control byte in a chunk extension"))
            }
            (State::Extension { size }, _) => self.extend(size),
            (State::SizeEnd { size: 0 }, b'\n') if self.lenient => Ok(State::Over),
            (State::SizeEnd { size: 0 }, b'\n') => Ok(State::Trailers),
            (State::SizeEnd { size }, b'\n') => Ok(State::Data { left: size }),
            (State::DataReturn, b'\r') => Ok(State::DataEnd),
            (State::DataEnd, b'\n') => Ok(State::default()),
            (State::SizeEnd { .. }, _) => Err(Malformed("a chunk size that does not end its line")),
            (State::DataReturn | State::DataEnd, _) => {
                Err(Malformed("a chunk longer than its size"))
            }
            (State::Trailers, byte) => self.trailer(byte),
            (State::Data { .. } | State::Over, _) => unreachable!("no framing"),
        }
    }

    fn extend(&mut self, size: u64) -> Result<State, Fault> {
        self.extensions += 1;
        match self.extensions > EXTENSIONS {
            true => Err(Malformed("too many chunk extensions")),
            false => Ok(State::Extension { size }),
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<State, Fault> {
        self.trailers.push(byte);
        if self.trailers.len() > TRAILERS {
            return Err(Fault::TooLarge);
        }
        if byte != b'\n' {
            return Ok(State::Trailers);
        }
        let ended = &self.trailers[..self.trailers.len() - 1];
        let start = ended.iter().rposition(|&byte| byte == b'\n');
        let line = &ended[start.map_or(0, |at| at + 1)..];
        let line = line
            .strip_suffix(b"\r")
            .ok_or(Malformed("a lone line feed after chunks"))?;
        if line.is_empty() {
            self.trailers = Vec::new();
            return Ok(State::Over);
        }
        let (name, _) = head::field(line)?;
        match is_forbidden(name) {
            true => Err(Malformed("a trailer that belongs into the header")),
            false => Ok(State::Trailers),
        }
    }
}

/// Fields that say how a message is framed, routed, authorised or to be handled (RFC 9110 section 6.5.1).
fn is_forbidden(name: &[u8]) -> bool {
    const NAMES: [&str; 14] = [
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES
        .iter()
        .any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How much of it is body, `None` if the end is missing.
    fn pass(text: &[u8]) -> Result<Option<usize>, Fault> {
        let mut chunked = Chunked::default();
        let length = chunked.pass(text)?;
        Ok(chunked.is_over().then_some(length))
    }

    #[test]
    fn body_ends_with_its_last_chunk_and_what_follows_is_not_part_of_it() {
        for body in [
            "0\r\n\r\n",
            "000\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "A\r\n0123456789\r\n1;x=\"y\"\r\n\n\r\n0;z\r\n\r\n",
            "1\r\na\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n",
        ] {
            let text = format!("{body}GET /");
            assert_eq!(pass(text.as_bytes()), Ok(Some(body.len())), "{body:?}");
        }
    }

    #[test]
    fn what_could_end_elsewhere_is_refused() {
        for body in [
            "\r\n",
            "g\r\n",
            "0x1\r\na\r\n",
            "-1\r\n",
            " 1\r\na\r\n",
            "1 \r\na\r\n",
            "1\na\n0\n\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\nab\r\n",
            "1;a\nb\r\n",
            "1;a\rb\r\n",
            "1;\0\r\n",
            "1\r\r\n",
            "1000000000000000\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\n\n",
            "0\r\nnothing\r\n\r\n",
            "0\r\n: a\r\n\r\n",
            "0\r\n:path: /\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\ntransfer-encoding: chunked\r\n\r\n",
            "0\r\nA: b\r\n c\r\n\r\n",
        ] {
            let passed = pass(body.as_bytes());
            assert!(matches!(passed, Err(Malformed(_))), "{body:?}: {passed:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extension = format!("1;{}", "x".repeat(EXTENSIONS));
        assert!(matches!(pass(extension.as_bytes()), Err(Malformed(_))));
        let each = "1;x\r\na\r\n".repeat(EXTENSIONS / 2 + 1);
        assert!(matches!(pass(each.as_bytes()), Err(Malformed(_))));
        let trailers = format!("0\r\n{}", "A: b\r\n".repeat(TRAILERS));
        assert_eq!(pass(trailers.as_bytes()), Err(Fault::TooLarge));
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_where_it_ends(
            text in "([0-3](;a)?\r?\n[a-c\r]{0,3}\r\n){0,3}0\r\n(A: b\r\n)?\r\nGET",
            cuts in proptest::collection::vec(0_usize..60, 0..4),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.min(&bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut chunked = Chunked::default();
            let mut length = Ok(0);
            for cut in cuts.windows(2) {
                length = length.and_then(|length| Ok(length + chunked.pass(&bytes[cut[0]..cut[1]])?));
            }
            let length = length.map(|length| chunked.is_over().then_some(length));
            prop_assert_eq!(length, pass(bytes));
        }
    }
}
