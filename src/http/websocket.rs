//! WebSocket frames (RFC 6455 section 5.2): where they end, without a look at what is in them, and the one that says
//! good-bye.

use boring::{base64, sha};

/// Service restart: who is told this may come again, elsewhere or later (the registry of RFC 6455 section 11.7).
pub const SERVICE_RESTART: u16 = 1012;
/// The endpoint goes away.
pub const GOING_AWAY: u16 = 1001;

const CLOSE: u8 = 8;

/// What a server that agrees to a WebSocket makes of the client's `Sec-WebSocket-Key` (RFC 6455 section 4.2.2).
pub fn accept(key: &[u8]) -> String {
    let salted = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    base64::encode_block(&sha::sha1(&salted))
}

/// Follows the frames of one direction. Any bytes will do: what is no WebSocket has its boundaries in odd places.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// The header of the present frame without its mask, as far as it came.
    head: [u8; 10],
    known: usize,
    /// What is still to come of mask and payload.
    left: u64,
    closing: bool,
}

impl Frames {
    /// Whether no frame has begun that has not ended.
    pub fn at_boundary(&self) -> bool {
        self.known == 0 && self.left == 0
    }

    /// Whether the header of a close frame went by, after which nothing else may be sent.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Goes past all of `bytes`.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.pass_frame(bytes)..];
        }
    }

    /// Goes past `bytes` as far as they are of the present frame, or of the next one; the result is how many are.
    pub fn pass_frame(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while self.left == 0 {
            let Some(byte) = bytes.get(passed) else {
                return passed;
            };
            self.head[self.known] = *byte;
            self.known += 1;
            passed += 1;
            if let Some(left) = self.rest() {
                self.closing |= self.head[0] & 0x0f == CLOSE;
                self.known = 0;
                self.left = left;
                if left == 0 {
                    return passed;
                }
            }
        }
        let rest = (bytes.len() - passed) as u64;
        let now = rest.min(self.left);
        self.left -= now;
        passed + usize::try_from(now).expect("no longer than the slice")
    }

    /// What comes after the header, once that is complete.
    fn rest(&self) -> Option<u64> {
        let head = &self.head[..self.known];
        let second = *head.get(1)?;
        let payload = match second & 0x7f {
            126 => u16::from_be_bytes(head.get(2..4)?.try_into().ok()?).into(),
            127 => u64::from_be_bytes(head.get(2..10)?.try_into().ok()?),
            length => length.into(),
        };
        let mask = if second & 0x80 != 0 { 4 } else { 0 };
        Some(payload.saturating_add(mask))
    }
}

/// A close frame. Clients mask what they send (section 5.3), servers do not.
pub fn close(code: u16, mask: Option<[u8; 4]>) -> Vec<u8> {
    const FINAL: u8 = 0x80;
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![FINAL | CLOSE, masked | 2];
    frame.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    frame.extend(code.to_be_bytes().iter().zip(mask).map(|(a, b)| a ^ b));
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame with a payload of that length.
    fn frame(opcode: u8, length: usize, mask: bool) -> Vec<u8> {
        let masked = if mask { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match length {
            0..126 => bytes.push(masked | length as u8),
            126..=0xffff => {
                bytes.push(masked | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(masked | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![0xff; length + if mask { 4 } else { 0 }]);
        bytes
    }

    proptest! {
        #[test]
        fn boundaries_are_where_frames_end(
            lengths in prop::collection::vec((prop_oneof![0usize..200, 60_000usize..70_000], any::<bool>()), 1..5),
            cuts in prop::collection::vec(1usize..3000, 1..200),
        ) {
            let frames: Vec<Vec<u8>> = lengths.iter().map(|(length, mask)| frame(2, *length, *mask)).collect();
            let all = frames.concat();
            let ends: Vec<usize> = frames.iter().scan(0, |at, frame| { *at += frame.len(); Some(*at) }).collect();
            let mut tracker = Frames::default();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = all.len().min(at + cut);
                let mut piece = &all[at..end];
                while !piece.is_empty() {
                    let passed = tracker.pass_frame(piece);
                    prop_assert!(passed > 0);
                    at += passed;
                    piece = &piece[passed..];
                    prop_assert_eq!(tracker.at_boundary(), ends.contains(&at), "at {}", at);
                }
                if at == all.len() {
                    break;
                }
            }
            prop_assert!(!tracker.is_closing());
        }

        #[test]
        fn any_bytes_will_do(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut whole = Frames::default();
            whole.pass(&bytes);
            let mut single = Frames::default();
            for byte in &bytes {
                single.pass(&[*byte]);
            }
            prop_assert_eq!(whole.at_boundary(), single.at_boundary());
            prop_assert_eq!(whole.left, single.left);
        }
    }

    #[test]
    fn close_frames_are_made_and_seen() {
        assert_eq!(close(SERVICE_RESTART, None), [0x88, 2, 0x03, 0xf4]);
        let masked = close(GOING_AWAY, Some([1, 2, 3, 4]));
        assert_eq!(masked, [0x88, 0x82, 1, 2, 3, 4, 0x03 ^ 1, 0xe9 ^ 2]);
        for close in [close(SERVICE_RESTART, None), masked] {
            let mut frames = Frames::default();
            frames.pass(&frame(1, 5, false));
            assert!(!frames.is_closing());
            frames.pass(&close);
            assert!(frames.is_closing() && frames.at_boundary());
        }
    }
}
