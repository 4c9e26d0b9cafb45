//! Which parts of weir an input reaches, where the program was built to tell (see `instrument`). LLVM puts a counter of
//! one byte behind each branch.

use std::slice;
use std::sync::Mutex;

/// The counters of each piece of the program, and what has been seen of them.
static PIECES: Mutex<Vec<Piece>> = Mutex::new(Vec::new());

struct Piece {
    start: usize,
    /// For each counter, the sizes that it has had, one bit each.
    seen: Vec<u8>,
}

/// Called by each piece of the program before `main`.
#[expect(unsafe_code, reason = "the name is LLVM's")]
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, end: *mut u8) {
    let (start, end) = (start.addr(), end.addr());
    let mut pieces = PIECES.lock().expect("nobody panics with it");
    if pieces.iter().all(|piece| piece.start != start) {
        let seen = vec![0; end - start];
        pieces.push(Piece { start, seen });
    }
}

/// Whether there is anything to see.
pub fn is_built_in() -> bool {
    !PIECES.lock().expect("nobody panics with it").is_empty()
}

/// Forgets what was counted.
pub fn begin() {
    for piece in &mut *PIECES.lock().expect("nobody panics with it") {
        counters(piece).0.fill(0);
    }
}

/// Whether anything was counted that never was before.
pub fn is_new() -> bool {
    let mut new = false;
    for piece in &mut *PIECES.lock().expect("nobody panics with it") {
        let (counters, seen) = counters(piece);
        // Nearly all are zero: eight of them are looked at at once.
        let chunks = counters.chunks(8).zip(seen.chunks_mut(8));
        for (counters, seen) in
            chunks.filter(|(counters, _)| **counters != [0; 8][..counters.len()])
        {
            for (count, seen) in counters.iter().zip(seen) {
                let size = size(*count);
                new |= *seen & size != size;
                *seen |= size;
            }
        }
    }
    new
}

/// Twice or thrice is something else than once, but 31 times is the same as 30.
fn size(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..8 => 8,
        8..16 => 16,
        16..32 => 32,
        32..128 => 64,
        128.. => 128,
    }
}

#[expect(unsafe_code, reason = "the counters are LLVM's")]
fn counters(piece: &mut Piece) -> (&mut [u8], &mut [u8]) {
    let start = std::ptr::with_exposed_provenance_mut(piece.start);
    // SAFETY: LLVM has said that so many counters begin there, and they last as long as the program. Whoever counts is the
    // thread that looks here, between two runs of a target; other threads at most lose a count.
    let counters = unsafe { slice::from_raw_parts_mut(start, piece.seen.len()) };
    (counters, &mut piece.seen)
}
