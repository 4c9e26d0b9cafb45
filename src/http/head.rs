//! The head of an HTTP/1 request, read strictly (RFC 9112), before any parser makes something of it.
//!
//! Two programs that read one request in two ways are how requests are smuggled. So what could be read in two ways is
//! no request here, even where RFC 9112 would let a recipient mend it; only a lone LF at the end of a line passes, as
//! its section 2.2 allows, and goes on as CRLF.
//!
//! This decides whether a head is well-formed, where it ends and how its body is framed. What is in it is for others.

use std::fmt;

use memchr::memchr;

/// Longer ones are none that anybody implements (RFC 9110 section 9.1: 501). The longest that is registered has 17.
pub const LONGEST_METHOD: usize = 32;
/// Empty lines that may come before a request (RFC 9112 section 2.2): leftovers of clients that end a body with one.
const EMPTY_LINES: usize = 4;

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the request line.
    pub line: usize,
    /// Bytes of the whole head.
    pub head: usize,
    /// Number of its fields.
    pub fields: usize,
}

/// A complete head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// In bytes, with the empty line that ends it.
    pub length: usize,
    pub framing: Framing,
}

/// What follows the head (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A body of so many bytes; 0 where there is none.
    Length(u64),
    Chunked,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not HTTP, or could be read in more than one way (400); with what is wrong.
    Malformed(&'static str),
    /// The request line is longer than the limit (414).
    LineTooLong,
    /// There are more fields, or more bytes of them, than the limit (431).
    TooLarge,
    /// No method, or no transfer coding, that this program could know (501).
    NotImplemented,
    /// A version of HTTP that is not spoken in this form (505).
    Version,
}

use Fault::Malformed;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed(what) => what,
            Fault::LineTooLong => "a request line beyond the limit",
            Fault::TooLarge => "a header beyond the limit",
            Fault::NotImplemented => "a method or transfer coding that nobody knows",
            Fault::Version => "a version of HTTP that is not spoken here",
        })
    }
}

impl std::error::Error for Fault {}

/// Reads a head as it arrives. Each byte is looked at once, however small the pieces.
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    /// Where the line begins that is not complete yet, and how far its end has been looked for.
    line: usize,
    searched: usize,
    empty_lines: usize,
    /// What the request line says, once it is there.
    version: Option<Version>,
    fields: usize,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

impl Reader {
    pub fn new(limits: Limits) -> Reader {
        Reader {
            limits,
            line: 0,
            searched: 0,
            empty_lines: 0,
            version: None,
            fields: 0,
            hosts: 0,
            length: None,
            chunked: false,
        }
    }

    /// Looks at what has arrived so far, from the first byte on: more each time. `None` as long as the end is missing.
    ///
    /// # Errors
    /// As soon as no continuation could make it a good head.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<Head>, Fault> {
        while let Some(at) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + at;
            let line = without_cr(&bytes[self.line..end]);
            self.line = end + 1;
            self.searched = self.line;
            if self.version.is_none() && line.len() > self.limits.line {
                return Err(Fault::LineTooLong);
            }
            if self.line > self.limits.head {
                return Err(Fault::TooLarge);
            }
            if self.take(line)? {
                return Ok(Some(Head {
                    length: self.line,
                    framing: self.framing()?,
                }));
            }
        }
        self.searched = bytes.len();
        let begun = &bytes[self.line..];
        match self.version {
            None if without_cr(begun).len() > self.limits.line => Err(Fault::LineTooLong),
            // What is no method will not become one; a client that speaks TLS here, say, would wait for its answer.
            None => check_method_so_far(begun).map(|()| None),
            Some(_) if bytes.len() > self.limits.head => Err(Fault::TooLarge),
            Some(_) => Ok(None),
        }
    }

    /// Whether anything but empty lines has come.
    pub fn has_begun(&self) -> bool {
        self.version.is_some() || self.searched > self.line
    }

    /// One line, without its end. True for the one that ends the head.
    fn take(&mut self, line: &[u8]) -> Result<bool, Fault> {
        match (self.version, line.is_empty()) {
            (None, true) => {
                self.empty_lines += 1;
                match self.empty_lines > EMPTY_LINES {
                    true => Err(Malformed("empty lines in the place of a request")),
                    false => Ok(false),
                }
            }
            (None, false) => {
                self.version = Some(request_line(line)?);
                Ok(false)
            }
            (Some(_), true) => Ok(true),
            (Some(_), false) => self.field(line).map(|()| false),
        }
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.fields += 1;
        if self.fields > self.limits.fields {
            return Err(Fault::TooLarge);
        }
        let (name, value) = field(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.hosts += 1,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let other = self.length.replace(length(value)?);
                if other.is_some() {
                    return Err(Malformed("two Content-Length fields"));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if std::mem::replace(&mut self.chunked, true) {
                    return Err(Malformed("two Transfer-Encoding fields"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(other_coding(value));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn framing(&self) -> Result<Framing, Fault> {
        let is_old = self.version == Some(Version::Http10);
        match self.hosts {
            0 if !is_old => return Err(Malformed("no Host field")),
            0 | 1 => {}
            _ => return Err(Malformed("two Host fields")),
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Malformed("Transfer-Encoding beside Content-Length")),
            (true, None) if is_old => Err(Malformed("Transfer-Encoding in HTTP/1.0")),
            (true, None) => Ok(Framing::Chunked),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// Name and value of a field (RFC 9112 section 5); the value without the blanks around it.
///
/// # Errors
/// When it is none.
pub fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Malformed("a folded line"));
    }
    let colon = memchr(b':', line).ok_or(Malformed("a field without a colon"))?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !all(name, TOKEN) {
        return Err(Malformed("a field name that is none"));
    }
    if !all(value, TEXT) {
        return Err(Malformed("a control byte in a field"));
    }
    Ok((name, trim(value)))
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn request_line(line: &[u8]) -> Result<Version, Fault> {
    let end = memchr(b' ', line).unwrap_or(line.len());
    let (method, rest) = line.split_at(end);
    check_method(method)?;
    let target_and_version = rest.get(1..).unwrap_or_default();
    let space = target_and_version.iter().rposition(|&byte| byte == b' ');
    let space = space.ok_or(Malformed("a request line without a version"))?;
    let (target, version) = target_and_version.split_at(space);
    check_target(method, target)?;
    match &version[1..] {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Fault::Version)
        }
        _ => Err(Malformed("a request line without a version")),
    }
}

fn check_method_so_far(begun: &[u8]) -> Result<(), Fault> {
    let is_end = |byte: &u8| matches!(byte, b' ' | b'\r');
    let method = &begun[..begun.iter().position(is_end).unwrap_or(begun.len())];
    match method.is_empty() && !begun.starts_with(b" ") {
        true => Ok(()),
        false => check_method(method),
    }
}

fn check_method(method: &[u8]) -> Result<(), Fault> {
    if method.is_empty() || !all(method, TOKEN) {
        return Err(Malformed("a method that is none"));
    }
    match method.len() > LONGEST_METHOD {
        true => Err(Fault::NotImplemented),
        false => Ok(()),
    }
}

/// The four forms of RFC 9112 section 3.2. What an authority may be is checked where it is used.
fn check_target(method: &[u8], target: &[u8]) -> Result<(), Fault> {
    if !all(target, TARGET) {
        return Err(Malformed("a byte in the target that must be encoded"));
    }
    let is_form = match target {
        _ if method == b"CONNECT" => !target.is_empty(),
        [b'/', ..] => true,
        b"*" => method == b"OPTIONS",
        _ => is_absolute(target),
    };
    match is_form {
        true => Ok(()),
        false => Err(Malformed("a target that is neither a path nor a URL")),
    }
}

fn is_absolute(target: &[u8]) -> bool {
    let has_scheme = |scheme: &[u8]| {
        target.len() > scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme)
    };
    has_scheme(b"http://") || has_scheme(b"https://")
}

/// `Content-Length` (RFC 9110 section 8.6): digits. A list of the same number, which a recipient may mend, is refused.
fn length(value: &[u8]) -> Result<u64, Fault> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = is_number
        .then(|| str::from_utf8(value).ok()?.parse().ok())
        .flatten();
    number.ok_or(Malformed("a Content-Length that is no number"))
}

/// What is wrong with a coding other than `chunked`. Where `chunked` comes last the end of the body is known, and the
/// client could do without the rest (501); otherwise nobody knows the end.
fn other_coding(value: &[u8]) -> Fault {
    let last = value.rsplit(|&byte| byte == b',').next().map(trim);
    let is_list = value.contains(&b',');
    match last.is_some_and(|last| last.eq_ignore_ascii_case(b"chunked")) && is_list {
        true => Fault::NotImplemented,
        false => Malformed("a Transfer-Encoding that does not end with chunked"),
    }
}

fn trim(value: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let start = value.iter().position(is_text).unwrap_or(value.len());
    let end = value.iter().rposition(is_text).map_or(start, |at| at + 1);
    &value[start..end]
}

/// What a byte may stand in; one table for all, so that each byte costs one look.
static KINDS: [u8; 256] = kinds();
/// `token` (RFC 9110 section 5.6.2).
const TOKEN: u8 = 1;
/// Field values: visible bytes, blanks and obs-text (section 5.5).
const TEXT: u8 = 2;
/// Targets: visible bytes but `#`, whose meaning a URL has left behind with its client. Bytes beyond ASCII are common.
const TARGET: u8 = 4;

const fn kinds() -> [u8; 256] {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let at = byte as u8;
        if at.is_ascii_alphanumeric() || is_token_mark(at) {
            kinds[byte] |= TOKEN;
        }
        if at == b'\t' || (at >= b' ' && at != 0x7f) {
            kinds[byte] |= TEXT;
        }
        if at > b' ' && at != 0x7f && at != b'#' {
            kinds[byte] |= TARGET;
        }
        byte += 1;
    }
    kinds
}

const fn is_token_mark(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'#'
            | b'$'
            | b'%'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'-'
            | b'.'
            | b'^'
            | b'_'
            | b'`'
            | b'|'
            | b'~'
    )
}

fn all(bytes: &[u8], kind: u8) -> bool {
    bytes
        .iter()
        .all(|&byte| KINDS[usize::from(byte)] & kind != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        line: 100,
        head: 300,
        fields: 5,
    };

    fn read(text: &str) -> Result<Option<Head>, Fault> {
        Reader::new(LIMITS).read(text.as_bytes())
    }

    fn framing(text: &str) -> Result<Framing, Fault> {
        read(text).map(|head| head.expect("a whole head").framing)
    }

    fn with_fields(fields: &str) -> Result<Framing, Fault> {
        framing(&format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
    }

    fn with_line(line: &str) -> Result<Framing, Fault> {
        framing(&format!("{line}\r\nHost: x\r\n\r\n"))
    }

    fn is_malformed(result: Result<Framing, Fault>) -> bool {
        matches!(result, Err(Malformed(_)))
    }

    #[test]
    fn head_ends_with_its_empty_line() {
        let head = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let found = read(&format!("{head}GET /")).unwrap().unwrap();
        assert_eq!(found.length, head.len());
        assert_eq!(found.framing, Framing::Length(0));
    }

    #[test]
    fn lone_line_feeds_end_lines_and_empty_ones_may_come_first() {
        let text = "\r\n\nGET / HTTP/1.1\nHost: x\n\n";
        assert_eq!(read(text).unwrap().unwrap().length, text.len());
    }

    #[test]
    fn line_feeds_without_end_are_no_request() {
        assert!(matches!(read("\n\n\n\n\n"), Err(Malformed(_))));
    }

    #[test]
    fn lengths_and_codings_tell_the_framing() {
        assert_eq!(with_fields("Content-Length: 7\r\n"), Ok(Framing::Length(7)));
        let chunked = "transfer-encoding:\tChunked \r\n";
        assert_eq!(with_fields(chunked), Ok(Framing::Chunked));
    }

    #[test]
    fn framing_that_could_be_read_in_two_ways_is_refused() {
        for fields in [
            "Content-Length: 7\r\nContent-Length: 8\r\n",
            "Content-Length: 7\r\nContent-Length: 7\r\n",
            "Content-Length: 7, 7\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: -7\r\n",
            "Content-Length: 0x7\r\n",
            "Content-Length: 7 \x0b\r\n",
            "Content-Length:\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 7\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding:\r\n",
        ] {
            assert!(is_malformed(with_fields(fields)), "{fields:?}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(is_malformed(framing(old)));
    }

    #[test]
    fn coding_before_chunked_is_not_implemented() {
        let fields = "Transfer-Encoding: gzip, chunked\r\n";
        assert_eq!(with_fields(fields), Err(Fault::NotImplemented));
    }

    #[test]
    fn fields_that_are_none_are_refused() {
        for fields in [
            "A b: c\r\n",
            "A : c\r\n",
            ": c\r\n",
            "A\r\n",
            "A: b\r\n folded\r\n",
            " A: b\r\n",
            "A: b\0\r\n",
            "A: b\x7f\r\n",
            "A: b\rc\r\n",
            "A: b\r\r\n",
            "A\rB: c\r\n",
            "A(: c\r\n",
        ] {
            assert!(is_malformed(with_fields(fields)), "{fields:?}");
        }
        assert!(with_fields("A: \u{fc}\t1\r\n").is_ok());
    }

    #[test]
    fn host_is_there_once() {
        assert!(is_malformed(framing("GET / HTTP/1.1\r\n\r\n")));
        assert!(framing("GET / HTTP/1.0\r\n\r\n").is_ok());
        assert!(is_malformed(with_fields("HOST: x\r\n")));
    }

    #[test]
    fn request_lines_of_all_forms_are_read() {
        for line in [
            "GET / HTTP/1.1",
            "GET /%20?q=\u{fc} HTTP/1.0",
            "OPTIONS * HTTP/1.1",
            "GET HTTP://x/ HTTP/1.1",
            "CONNECT x:443 HTTP/1.1",
            "M-SEARCH / HTTP/1.1",
        ] {
            assert!(with_line(line).is_ok(), "{line:?}");
        }
    }

    #[test]
    fn request_lines_that_are_none_are_refused() {
        for line in [
            "GET /",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET / HTTP/1.1 ",
            " GET / HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "G\"T / HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET /a\0 HTTP/1.1",
            "GET /a#b HTTP/1.1",
            "GET x HTTP/1.1",
            "GET * HTTP/1.1",
            "GET ftp://x/ HTTP/1.1",
            "GET http:// HTTP/1.1",
            "GET / http/1.1",
            "GET / HTTP/11",
            "GET",
        ] {
            assert!(is_malformed(with_line(line)), "{line:?}");
        }
    }

    #[test]
    fn other_versions_and_endless_methods_have_a_status_of_their_own() {
        assert_eq!(with_line("GET / HTTP/2.0"), Err(Fault::Version));
        assert_eq!(with_line("GET / HTTP/1.2"), Err(Fault::Version));
        let line = format!("{} / HTTP/1.1", "M".repeat(33));
        assert_eq!(with_line(&line), Err(Fault::NotImplemented));
    }

    #[test]
    fn limits_hold_before_the_end_has_come() {
        let line = format!("GET /{}", "x".repeat(100));
        assert_eq!(read(&line), Err(Fault::LineTooLong));
        let fields = "A: b\r\n".repeat(5);
        assert_eq!(with_fields(&fields), Err(Fault::TooLarge));
        let field = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(300));
        assert_eq!(read(&field), Err(Fault::TooLarge));
    }

    #[test]
    fn end_of_the_line_does_not_count() {
        let line = |length: usize| format!("GET /{} HTTP/1.1", "x".repeat(length - 14));
        for end in ["\r", "\r\n"] {
            assert_eq!(read(&format!("{}{end}", line(100))), Ok(None));
            assert_eq!(
                read(&format!("{}{end}", line(101))),
                Err(Fault::LineTooLong)
            );
        }
    }

    #[test]
    fn what_cannot_become_a_request_is_refused_at_once() {
        assert!(matches!(read("\x16\x03\x01"), Err(Malformed(_))));
        assert!(matches!(read(" "), Err(Malformed(_))));
        assert_eq!(read("GE"), Ok(None));
        assert_eq!(read("\r"), Ok(None));
        assert_eq!(read("GET\r"), Ok(None));
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_what_is_read(
            text in "(GET|PUT|G T) /[a-z #]{0,3} HTTP/1.[012]\r?\n(Host: x\r?\n|A: \r?b\r\n|[A: \r]{0,4}\n){0,4}\r?\n.{0,3}",
            cuts in proptest::collection::vec(0_usize..80, 0..4),
        ) {
            let bytes = text.as_bytes();
            let whole = Reader::new(LIMITS).read(bytes);
            let mut reader = Reader::new(LIMITS);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.min(&bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut last = Ok(None);
            for cut in cuts {
                last = reader.read(&bytes[..cut]);
                if last != Ok(None) {
                    break;
                }
            }
            prop_assert_eq!(last, whole);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Reader::new(LIMITS).read(&bytes);
        }
    }
}
