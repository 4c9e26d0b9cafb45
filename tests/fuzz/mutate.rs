//! Inputs made of others.

use fastrand::Rng;

/// Longer ones are slow, and show nothing that shorter ones do not.
const LONGEST: usize = 4096;

/// An input that is like `input`, with some of `other` in it perhaps.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.usize(1..5) {
        let at = rng.usize(0..=bytes.len());
        match rng.u8(0..9) {
            0 => flip(&mut bytes, at, rng),
            1 => bytes.insert(at, byte(rng)),
            2 => replace(&mut bytes, at, byte(rng)),
            3 => drop(bytes.drain(at..end(&bytes, at, rng))),
            4 => {
                let piece = bytes[at..end(&bytes, at, rng)].to_vec();
                let times = if rng.u8(..) == 0 {
                    rng.usize(1..200)
                } else {
                    1
                };
                insert(&mut bytes, at, &piece.repeat(times));
            }
            5 => {
                let from = rng.usize(0..=other.len());
                let piece = &other[from..end(other, from, rng)];
                insert(&mut bytes, at, piece);
            }
            6 => {
                let from = rng.usize(0..=other.len());
                let piece = other[from..end(other, from, rng)].to_vec();
                bytes.splice(at..end(&bytes, at, rng), piece);
            }
            7 => {
                let to = rng.usize(0..=bytes.len());
                if at < bytes.len() && to < bytes.len() {
                    bytes.swap(at, to);
                }
            }
            _ => bytes.truncate(at),
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

fn flip(bytes: &mut [u8], at: usize, rng: &mut Rng) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << rng.u8(0..8);
    }
}

fn replace(bytes: &mut [u8], at: usize, by: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = by;
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}

/// The end of a piece that begins at `at`; most are short.
fn end(bytes: &[u8], at: usize, rng: &mut Rng) -> usize {
    let most = bytes.len() - at;
    at + match rng.bool() {
        true => rng.usize(0..=most.min(8)),
        false => rng.usize(0..=most),
    }
}

/// Any byte, but rather one that parsers look for.
fn byte(rng: &mut Rng) -> u8 {
    const SIGNS: &[u8] = b"\0\t\n\r \"#$%&'()*+,-./09:;=?@AZ[\\]^_az{|}~\x7f\x80\xc3\xff";
    match rng.u8(0..3) {
        0 => rng.u8(..),
        _ => SIGNS[rng.usize(..SIGNS.len())],
    }
}
