//! What must hold of each parser, whatever it is given: more than that it does not panic.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str;
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use weir::config::{Config, load};
use weir::http::chunked::Chunked;
use weir::http::coding::{self, Coding};
use weir::http::conditional::{self, Verdict};
use weir::http::frames::{Allowance, Frames};
use weir::http::head::{self, Framing, Limits};
use weir::http::proxy_protocol::{self, Version};
use weir::http::range::{self, Wanted};
use weir::http::{accept, cookie, forwarded, host, path, websocket};
use weir::issue::places::Places;
use weir::issue::{KeyPath, Spot, Step};
use weir::tls::CertifiedKey;
use weir::value::{Cidr, Factor, Ratio, Size, Span, Template};

pub struct Target {
    pub name: &'static str,
    /// Panics where it does not.
    pub holds: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), holds: $name }),*];
    };
}

targets![
    proxy_protocol_header,
    request_head,
    chunked_body,
    http2_frames,
    websocket_frames,
    host_name,
    request_path,
    byte_range,
    forwarded_for,
    cookies,
    accepted,
    preconditions,
    ocsp_response,
    template,
    values,
    yaml_places,
    document,
];

/// Splits the input in two, for parsers that are fed in pieces: where, says its first byte.
fn pieces(input: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&at, input) = input.split_first()?;
    let (first, second) = input.split_at(usize::from(at) * input.len() / 255);
    Some((input, first, second))
}

/// One header of several lines.
fn headers(name: HeaderName, input: &[u8]) -> HeaderMap {
    let lines = input.split(|&byte| byte == b'\n');
    let values = lines.filter_map(|line| HeaderValue::from_bytes(line).ok());
    values.map(|value| (name.clone(), value)).collect()
}

fn proxy_protocol_header(input: &[u8]) {
    let read = proxy_protocol::read;
    match read(input) {
        Ok(Some(header)) => {
            assert!(header.length <= input.len().min(proxy_protocol::LONGEST));
            for end in 0..header.length {
                assert_eq!(read(&input[..end]), Ok(None), "its first {end} bytes");
            }
            let alone = &input[..header.length];
            assert_eq!(read(alone), Ok(Some(header)), "what follows counts");
            let family = |end: SocketAddr| end.ip().to_canonical().is_ipv4();
            let Some(ends) = header.ends else { return };
            for version in [Version::V1, Version::V2] {
                let written = proxy_protocol::header(version, Some(ends));
                let again = read(&written).expect("a header").expect("all of it");
                assert_eq!(again.length, written.len());
                if family(ends.client) != family(ends.server) {
                    assert_eq!(again.ends, None);
                    continue;
                }
                let again = again.ends.expect("the same ends");
                for (one, other) in [(ends.client, again.client), (ends.server, again.server)] {
                    assert_eq!(one.ip().to_canonical(), other.ip().to_canonical());
                    assert_eq!(one.port(), other.port());
                }
            }
        }
        Ok(None) => assert!(input.len() < proxy_protocol::LONGEST),
        Err(_) => assert!(read(&[input, b"\r\n"].concat()).is_err(), "more mends it"),
    }
}

fn request_head(input: &[u8]) {
    const LIMITS: Limits = Limits {
        line: 200,
        head: 1000,
        fields: 20,
    };
    let Some((input, first, _)) = pieces(input) else {
        return;
    };
    let mut reader = head::Reader::new(LIMITS);
    let whole = reader.read(input);
    let mut other = head::Reader::new(LIMITS);
    let in_pieces = match other.read(first) {
        Ok(None) => other.read(input),
        early => early,
    };
    match (&whole, &in_pieces) {
        // Which of its faults is seen first depends on what is there.
        (Err(_), Err(_)) => {}
        _ => assert_eq!(in_pieces, whole, "after {} bytes", first.len()),
    }
    let Ok(Some(head)) = whole else { return };
    assert!(head.length <= input.len().min(LIMITS.head));
    is_unambiguous(&input[..head.length], head.framing);
}

/// Reads a head that was accepted as a lenient program would, which must not find anything else in it.
fn is_unambiguous(head: &[u8], framing: Framing) {
    let text = head.to_ascii_lowercase();
    for (at, byte) in text.iter().enumerate() {
        assert!(*byte != 0, "a NUL");
        assert!(
            *byte != b'\r' || text.get(at + 1) == Some(&b'\n'),
            "a lone CR"
        );
    }
    let lines: Vec<&[u8]> = text
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_end)
        .collect();
    let first = lines
        .iter()
        .position(|line| !line.is_empty())
        .expect("a request line");
    let request = lines[first];
    assert_eq!(
        request.iter().filter(|byte| **byte == b' ').count(),
        2,
        "of three words"
    );
    let end = lines[first..]
        .iter()
        .position(|line| line.is_empty())
        .expect("an end");
    assert_eq!(first + end + 2, lines.len(), "it ends where it is said to");
    let fields = &lines[first + 1..][..end - 1];
    let values = |name: &str| -> Vec<&[u8]> {
        let is_of = |line: &&&[u8]| line.trim_ascii_start().starts_with(name.as_bytes());
        let mut found = Vec::new();
        for line in fields.iter().filter(is_of) {
            let rest = &line.trim_ascii_start()[name.len()..].trim_ascii_start();
            found.extend(rest.strip_prefix(b":").map(<[u8]>::trim_ascii));
        }
        found
    };
    assert!(values("host").len() <= 1, "two hosts");
    let lengths = values("content-length");
    match framing {
        Framing::Chunked => {
            assert!(lengths.is_empty(), "two framings");
            assert_eq!(values("transfer-encoding"), [b"chunked"]);
        }
        Framing::Length(length) => {
            assert!(values("transfer-encoding").is_empty(), "two framings");
            let found = lengths
                .first()
                .map_or("0", |text| str::from_utf8(text).expect("digits"));
            assert!(lengths.len() <= 1, "two lengths");
            assert_eq!(found.parse(), Ok(length));
        }
    }
}

fn chunked_body(input: &[u8]) {
    let Some((input, first, second)) = pieces(input) else {
        return;
    };
    let mut body = Chunked::default();
    let whole = body.pass(input);
    let mut other = Chunked::default();
    let in_pieces = other
        .pass(first)
        .and_then(|passed| Ok(passed + other.pass(second)?));
    assert_eq!(
        in_pieces.is_ok(),
        whole.is_ok(),
        "after {} bytes",
        first.len()
    );
    let Ok(passed) = whole else { return };
    assert_eq!(in_pieces, Ok(passed));
    assert_eq!(other.is_over(), body.is_over());
    match body.is_over() {
        true => assert_eq!(end_of_chunks(input), Some(passed), "another end"),
        false => assert_eq!(passed, input.len()),
    }
}

/// Where a chunked body ends, as RFC 9112 section 7.1 reads.
fn end_of_chunks(input: &[u8]) -> Option<usize> {
    let line = |at: usize| {
        let length = input[at..].windows(2).position(|two| two == b"\r\n")?;
        Some((&input[at..at + length], at + length + 2))
    };
    let mut at = 0;
    loop {
        let (size, next) = line(at)?;
        let digits = size.split(|byte| *byte == b';').next()?;
        let size = usize::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        assert_eq!(&input[at + size..][..2], b"\r\n");
        at += size + 2;
    }
    loop {
        let (field, next) = line(at)?;
        at = next;
        if field.is_empty() {
            return Some(at);
        }
    }
}

fn http2_frames(input: &[u8]) {
    let Some((input, first, second)) = pieces(input) else {
        return;
    };
    let read = |frames: &mut Frames, mut bytes: &[u8]| {
        let mut found = Vec::new();
        while let Some(frame) = frames.next(&mut bytes) {
            found.push(frame);
        }
        assert!(bytes.is_empty());
        found
    };
    let (mut whole, mut parts) = (Frames::default(), Frames::default());
    let frames = read(&mut whole, input);
    let mut in_pieces = read(&mut parts, first);
    in_pieces.extend(read(&mut parts, second));
    assert_eq!(frames, in_pieces);
    assert_eq!(whole.at_boundary(), parts.at_boundary());
    let most: usize = frames.iter().map(|frame| 9 + frame.length).sum();
    assert!(!whole.at_boundary() || most == input.len());
    let now = Instant::now();
    let mut allowance = Allowance::new(now);
    for frame in &frames {
        allowance.receive(frame, now);
        allowance.send(frame);
    }
}

fn websocket_frames(input: &[u8]) {
    let Some((input, first, second)) = pieces(input) else {
        return;
    };
    let (mut whole, mut parts) = (websocket::Frames::default(), websocket::Frames::default());
    whole.pass(input);
    parts.pass(first);
    parts.pass(second);
    assert_eq!(whole.at_boundary(), parts.at_boundary());
    assert_eq!(whole.is_closing(), parts.is_closing());
}

fn host_name(input: &[u8]) {
    let mut name = String::from("before");
    match host::normalise_into(input, &mut name) {
        Ok(()) => {
            let bare = name
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'));
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
            assert!(bare.unwrap_or(&name).bytes().all(allowed), "{name}");
            assert_eq!(bare.is_none(), !name.contains(':'), "{name}");
            assert_eq!(name, name.to_ascii_lowercase());
            for same in [
                name.clone(),
                name.to_ascii_uppercase(),
                format!("{name}:443"),
            ] {
                // A port alone is none of an empty name.
                if name.is_empty() && !same.is_empty() {
                    continue;
                }
                let mut again = String::new();
                assert_eq!(
                    host::normalise_into(same.as_bytes(), &mut again),
                    Ok(()),
                    "{same}"
                );
                assert_eq!(again, name);
            }
        }
        Err(_) => assert!(name.is_empty()),
    }
}

fn request_path(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let target = path::split_target(text);
    assert!(!target.path.is_empty());
    if let Some(query) = target.query {
        assert!(text.contains(&format!("?{query}")));
    }
    let mut into = String::from("before");
    let normal = path::normalise(target.path);
    assert_eq!(
        path::normalise_into(target.path, &mut into).is_ok(),
        normal.is_ok()
    );
    let Ok(normal) = normal else {
        assert!(into.is_empty());
        return;
    };
    assert_eq!(into, normal);
    let segments: Vec<&str> = normal
        .strip_prefix('/')
        .expect("a slash")
        .split('/')
        .collect();
    let (last, above) = segments.split_last().expect("one at least");
    assert!(above.iter().all(|segment| !segment.is_empty()), "{normal}");
    assert!(
        segments
            .iter()
            .all(|segment| !matches!(*segment, "." | "..")),
        "{normal}"
    );
    assert!(!last.contains('\0') && !normal.contains('\0'), "{normal:?}");
    let encoded = path::encode(&normal).to_string();
    assert!(encoded.is_ascii());
    assert_eq!(
        path::normalise(&encoded).as_deref(),
        Ok(&*normal),
        "{encoded}"
    );
}

fn byte_range(input: &[u8]) {
    let Some((size, value)) = input.split_first_chunk::<2>() else {
        return;
    };
    let size = u64::from(u16::from_be_bytes(*size));
    let headers = headers(header::RANGE, value);
    let parts = match range::wanted(&headers, size) {
        Wanted::Part(part) => vec![part],
        Wanted::Parts(parts) => {
            assert!(parts.len() > 1);
            parts
        }
        Wanted::Whole | Wanted::Nothing => return,
    };
    let mut sent = 0;
    for (at, part) in parts.iter().enumerate() {
        assert!(part.start < part.end && part.end <= size, "{part:?}");
        let apart = |other: &std::ops::Range<u64>| other.start > part.end || other.end < part.start;
        assert!(parts[at + 1..].iter().all(apart), "{parts:?}");
        sent += part.end - part.start;
        range::content_range(part, size);
    }
    assert!(sent <= size);
}

fn forwarded_for(input: &[u8]) {
    let (names, value) = match input.split_first() {
        Some((byte, value)) if byte % 2 == 0 => (header::FORWARDED, value),
        Some((_, value)) => (HeaderName::from_static("x-forwarded-for"), value),
        None => return,
    };
    let headers = headers(names, value);
    let peer: IpAddr = "10.0.0.1".parse().expect("an address");
    let internal = |address: IpAddr| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10);
    assert_eq!(forwarded::client(peer, &headers, |_| false), peer);
    let client = forwarded::client(peer, &headers, internal);
    assert_eq!(client, client.to_canonical());
    let farthest = forwarded::client(peer, &headers, |_| true);
    if internal(client) {
        // Whatever is beyond it is not known, whoever is trusted.
        assert_eq!(farthest, client);
    }
    for trusted in [false, true] {
        let list = forwarded::forwarded_for(Some(peer), &headers, trusted);
        let list = list.expect("the peer at least");
        assert!(list.as_bytes().ends_with(b"10.0.0.1"));
    }
}

fn cookies(input: &[u8]) {
    let headers = headers(header::COOKIE, input);
    for (name, value) in cookie::pairs(&headers) {
        assert!(!name.contains(&b'=') && !name.contains(&b';') && !value.contains(&b';'));
        assert_eq!((name.trim_ascii(), value.trim_ascii()), (name, value));
    }
}

fn accepted(input: &[u8]) {
    accept::prefers_json(&headers(header::ACCEPT, input));
    let headers = headers(header::ACCEPT_ENCODING, input);
    let offered = [Coding::Br, Coding::Zstd, Coding::Gzip];
    let preferred = coding::preferred(&headers, &offered);
    for (at, coding) in preferred.iter().enumerate() {
        assert!(!preferred[..at].contains(coding));
        // The others do not count.
        assert_eq!(coding::preferred(&headers, &[*coding]), [*coding]);
    }
}

fn preconditions(input: &[u8]) {
    const NAMES: [HeaderName; 5] = [
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_RANGE,
    ];
    let lines = input.split(|&byte| byte == b'\n');
    let headers: HeaderMap = lines
        .filter_map(|line| {
            let (which, value) = line.split_first()?;
            let name = &NAMES[usize::from(*which) % NAMES.len()];
            Some((name.clone(), HeaderValue::from_bytes(value).ok()?))
        })
        .collect();
    let version = conditional::Version {
        etag: b"\"5e-1\"",
        modified: Some(784_111_777),
    };
    let get = conditional::evaluate(&Method::GET, &headers, &version);
    let put = conditional::evaluate(&Method::PUT, &headers, &version);
    assert_ne!(put, Verdict::NotModified);
    assert!(get == put || get == Verdict::NotModified, "{get:?} {put:?}");
    if headers.is_empty() {
        assert_eq!(get, Verdict::Proceed);
        assert!(conditional::range_applies(&headers, &version));
    }
    conditional::range_applies(&headers, &version);
}

fn ocsp_response(input: &[u8]) {
    static CERTIFICATE: LazyLock<Mutex<CertifiedKey>> = LazyLock::new(|| {
        let certificate = CertifiedKey::self_signed(&["localhost".to_owned()]);
        Mutex::new(certificate.expect("randomness"))
    });
    let mut certificate = CERTIFICATE.lock().expect("nobody panics with it");
    // Nobody has said anything of a certificate that was made just now.
    assert!(certificate.staple(input.to_vec()).is_err());
}

fn template(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match Template::parse(text) {
        Ok(template) => {
            let written = template.to_string();
            assert_eq!(Template::parse(&written), Ok(template), "{written}");
        }
        Err(e) => assert_eq!(text.as_bytes().get(e.offset), Some(&b'$')),
    }
}

fn values(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    macro_rules! reads_what_it_writes {
        ($($value:ty),*) => {
            $(if let Ok(value) = text.parse::<$value>() {
                let written = value.to_string();
                assert_eq!(written.parse::<$value>(), Ok(value), "{written}");
            })*
        };
    }
    reads_what_it_writes!(Span, Size, Ratio, Factor, Cidr);
}

/// A path of each node of a document, with what is a plain key in it.
fn paths(value: &serde_yaml::Value, at: &KeyPath, found: &mut Vec<KeyPath>) {
    let below = |step: Step| {
        let mut path = at.clone();
        path.0.push(step);
        path
    };
    match value {
        serde_yaml::Value::Mapping(map) => {
            for (key, value) in map {
                if let Some(key) = key.as_str() {
                    let path = below(Step::Key(key.to_owned()));
                    found.push(path.clone());
                    paths(value, &path, found);
                }
            }
        }
        serde_yaml::Value::Sequence(list) => {
            for (i, value) in list.iter().enumerate() {
                let path = below(Step::Index(i));
                found.push(path.clone());
                paths(value, &path, found);
            }
        }
        _ => {}
    }
}

fn yaml_places(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let places = Places::of(text);
    let mut asked = vec![KeyPath(vec![
        Step::Key("nowhere".to_owned()),
        Step::Index(3),
    ])];
    // Aliases make a large document of a small one.
    if !text.contains('*')
        && let Ok(value) = serde_yaml::from_str(text)
    {
        paths(&value, &KeyPath::default(), &mut asked);
    }
    for path in &asked {
        let found = [
            places.find(path, true),
            places.find(path, false),
            places.find_again(path),
        ];
        for found in found.into_iter().flatten() {
            is_in(text, found.spot);
        }
    }
}

fn is_in(text: &str, spot: Spot) {
    // The parser counts lines as YAML does, which has more ends of lines than `lines` knows.
    let lines = text
        .split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
        .count();
    assert!(spot.line >= 1 && spot.line <= lines + 1, "{spot:?}");
    assert!(
        spot.column >= 1 && spot.column <= text.chars().count() + 2,
        "{spot:?}"
    );
}

fn document(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    // Others than this text are none of ours, some of which never end.
    if text.contains("include") || text.contains("file:") {
        return;
    }
    let read = load::parse::<Config>(Path::new("weir.yaml"), text);
    for issue in &read.issues.0 {
        assert!(!issue.message.is_empty());
        if let Some(spot) = issue.place.as_ref().and_then(|place| place.spot) {
            is_in(text, spot);
        }
    }
    assert!(
        read.document.is_some() || read.issues.has_errors(),
        "nothing, and no word"
    );
    read.issues.to_string();
}
