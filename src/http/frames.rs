//! HTTP/2 frames (RFC 9113 section 4): where they begin, without a look at what is in them, and how many a client may
//! send that only keep a server busy.

use std::time::Instant;

/// What a client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame's header.
const HEAD: usize = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    Ping,
    Goaway,
    WindowUpdate,
    Continuation,
    /// Pushes, which no client may send, and what recipients ignore (RFC 9113 section 5.5).
    Other,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub length: usize,
    pub stream: u32,
    flags: u8,
}

impl Frame {
    fn parse(head: &[u8; HEAD]) -> Frame {
        let [high, mid, low, kind, flags, stream @ ..] = *head;
        Frame {
            kind: Kind::of(kind),
            length: u32::from_be_bytes([0, high, mid, low]) as usize,
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
            flags,
        }
    }

    /// Whether its sender has nothing more to say on its stream.
    pub fn ends_stream(&self) -> bool {
        match self.kind {
            Kind::Data | Kind::Headers => self.flags & 0x1 != 0,
            Kind::RstStream => true,
            _ => false,
        }
    }

    /// Whether it is a piece of a request or of an answer.
    pub fn is_of_message(&self) -> bool {
        matches!(self.kind, Kind::Data | Kind::Headers | Kind::Continuation)
    }

    /// Whether CONTINUATION frames must follow.
    pub fn opens_block(&self) -> bool {
        matches!(self.kind, Kind::Headers | Kind::Continuation) && self.flags & 0x4 == 0
    }
}

impl Kind {
    fn of(byte: u8) -> Kind {
        match byte {
            0 => Kind::Data,
            1 => Kind::Headers,
            2 => Kind::Priority,
            3 => Kind::RstStream,
            4 => Kind::Settings,
            6 => Kind::Ping,
            7 => Kind::Goaway,
            8 => Kind::WindowUpdate,
            9 => Kind::Continuation,
            _ => Kind::Other,
        }
    }

    /// As in RFC 9113.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Data => "DATA",
            Kind::Headers => "HEADERS",
            Kind::Priority => "PRIORITY",
            Kind::RstStream => "RST_STREAM",
            Kind::Settings => "SETTINGS",
            Kind::Ping => "PING",
            Kind::Goaway => "GOAWAY",
            Kind::WindowUpdate => "WINDOW_UPDATE",
            Kind::Continuation => "CONTINUATION",
            Kind::Other => "unknown",
        }
    }
}

/// Follows the frames of one direction, behind the preface. Any bytes will do: what is no HTTP/2 has its boundaries in
/// odd places.
#[derive(Debug, Default)]
pub struct Frames {
    head: [u8; HEAD],
    known: usize,
    /// What is still to come of the payload.
    left: usize,
    /// Whether the frame that began last is a piece of a request or of an answer.
    of_message: bool,
}

impl Frames {
    /// The next frame whose header ends in `bytes`, of which what comes before its payload is taken away.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let payload = self.left.min(bytes.len());
        self.left -= payload;
        let (head, rest) =
            bytes[payload..].split_at((HEAD - self.known).min(bytes.len() - payload));
        self.head[self.known..][..head.len()].copy_from_slice(head);
        self.known += head.len();
        *bytes = rest;
        if self.known < HEAD {
            return None;
        }
        let frame = Frame::parse(&self.head);
        self.known = 0;
        self.left = frame.length;
        self.of_message = frame.is_of_message();
        Some(frame)
    }

    /// Whether what comes next is the rest of a piece of a request or of an answer.
    pub fn is_within_message(&self) -> bool {
        self.of_message && self.left > 0
    }

    /// Whether no frame has begun that has not ended.
    pub fn at_boundary(&self) -> bool {
        self.known == 0 && self.left == 0
    }
}

/// How many frames a client may send that bring no request forward. What such frames cost a server is little each, but
/// no flow control is in their way.
///
/// Requests and data earn more of them: a client may answer each piece of an answer with window updates and a probe of
/// the round trip, and cancel some of what it asks for. Empty DATA, CONTINUATION, and resets of requests that nobody has
/// looked at yet are bounded by the engine.
#[derive(Debug)]
pub struct Allowance {
    frames: Bucket,
    resets: Bucket,
}

impl Allowance {
    pub fn new(now: Instant) -> Allowance {
        Allowance {
            frames: Bucket::new(4096, 512, now),
            resets: Bucket::new(512, 64, now),
        }
    }

    /// Takes note of a frame from the client; false when it was one too many.
    pub fn receive(&mut self, frame: &Frame, now: Instant) -> bool {
        match frame.kind {
            Kind::Headers => {
                self.frames.earn(4);
                self.resets.earn(1);
                true
            }
            Kind::Data if frame.length > 0 => {
                self.frames.earn(1);
                true
            }
            Kind::Data | Kind::Continuation => true,
            // So more than half of the requests are not to be cancelled for long.
            Kind::RstStream => self.resets.spend(2, now),
            // Each may change the window of all streams.
            Kind::Settings => self.frames.spend(16, now),
            Kind::Priority | Kind::Ping | Kind::Goaway | Kind::WindowUpdate | Kind::Other => {
                self.frames.spend(1, now)
            }
        }
    }

    /// Takes note of a frame to the client.
    pub fn send(&mut self, frame: &Frame) {
        if frame.kind == Kind::Data && frame.length > 0 {
            let pieces = frame.length / 512;
            self.frames
                .earn(4 + u32::try_from(pieces).unwrap_or(u32::MAX));
        }
    }
}

/// A token bucket. The time is looked at only when it runs dry.
#[derive(Debug)]
struct Bucket {
    level: u32,
    most: u32,
    per_second: u32,
    filled: Instant,
}

impl Bucket {
    fn new(most: u32, per_second: u32, now: Instant) -> Bucket {
        Bucket {
            level: most,
            most,
            per_second,
            filled: now,
        }
    }

    fn earn(&mut self, count: u32) {
        self.level = self.level.saturating_add(count).min(self.most);
    }

    fn spend(&mut self, count: u32, now: Instant) -> bool {
        if self.level < count {
            let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
            self.earn((elapsed * f64::from(self.per_second)) as u32);
            self.filled = now;
        }
        let Some(left) = self.level.checked_sub(count) else {
            return false;
        };
        self.level = left;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn heads(frames: &mut Frames, mut bytes: &[u8]) -> Vec<Frame> {
        std::iter::from_fn(|| frames.next(&mut bytes)).collect()
    }

    fn of(kind: Kind, length: usize) -> Frame {
        Frame {
            kind,
            length,
            stream: 1,
            flags: 0,
        }
    }

    /// How many such frames pass at one time, at most `most`.
    fn pass(allowance: &mut Allowance, kind: Kind, most: usize, now: Instant) -> usize {
        let frames = (0..most).take_while(|_| allowance.receive(&of(kind, 8), now));
        frames.count()
    }

    #[test]
    fn frames_are_found_wherever_reads_end() {
        let mut bytes = frame(4, 0, 0, b"");
        bytes.extend(frame(1, 0x5, 1, b"header"));
        bytes.extend(frame(0, 0, 0x8000_0003, &[0; 300]));
        bytes.extend(frame(77, 0xff, 5, b"?"));
        for size in 1..bytes.len() {
            let mut frames = Frames::default();
            let pieces = bytes.chunks(size);
            let found: Vec<_> = pieces.flat_map(|piece| heads(&mut frames, piece)).collect();
            assert!(frames.at_boundary());
            let seen: Vec<_> = found.iter().map(|f| (f.kind, f.length, f.stream)).collect();
            let expected = [
                (Kind::Settings, 0, 0),
                (Kind::Headers, 6, 1),
                (Kind::Data, 300, 3),
                (Kind::Other, 1, 5),
            ];
            assert_eq!(seen, expected);
            assert!(found[1].ends_stream() && !found[1].opens_block());
            assert!(!found[2].ends_stream() && !found[3].ends_stream());
        }
    }

    #[test]
    fn floods_end_and_time_gives_more() {
        let now = Instant::now();
        for (kind, most) in [
            (Kind::Ping, 4096),
            (Kind::WindowUpdate, 4096),
            (Kind::Priority, 4096),
            (Kind::Other, 4096),
            (Kind::Settings, 256),
            (Kind::RstStream, 256),
        ] {
            let mut allowance = Allowance::new(now);
            assert_eq!(pass(&mut allowance, kind, 10_000, now), most, "{kind:?}");
            let later = now + Duration::from_secs(1);
            assert_eq!(
                pass(&mut allowance, kind, 10_000, later),
                most / 8,
                "{kind:?}"
            );
        }
    }

    #[test]
    fn good_clients_never_run_short() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        for _ in 0..10_000 {
            assert!(allowance.receive(&of(Kind::Headers, 30), now));
            assert!(allowance.receive(&of(Kind::Priority, 5), now));
            allowance.send(&of(Kind::Data, 10));
            assert_eq!(pass(&mut allowance, Kind::WindowUpdate, 2, now), 2);
            assert_eq!(pass(&mut allowance, Kind::Ping, 1, now), 1);
            // one in three requests is cancelled
            assert!(allowance.receive(&of(Kind::Headers, 30), now));
            assert!(allowance.receive(&of(Kind::Headers, 30), now));
            assert!(allowance.receive(&of(Kind::RstStream, 4), now));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_followed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            heads(&mut Frames::default(), &bytes);
        }
    }
}
