//! Port numbers that no other test has, in this process or another one.
//!
//! A UDP socket bound to the number is the lock (as in nginx-tests): it lives as long as the [`Port`], while the TCP
//! port of that number stays free for the program under test, to bind, to close and to bind again. The numbers are
//! taken below the kernel's ephemeral range, so that no outgoing connection of a load test can sit on one of them
//! when it is to be bound.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

const NUMBERS: Range<u16> = 12_000..32_000;

/// A reserved port number; free again when dropped.
pub struct Port {
    number: u16,
    _lock: UdpSocket,
}

impl Port {
    pub fn reserve() -> Port {
        // each process starts somewhere else, so that parallel runs seldom try the same numbers
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let start = std::process::id().wrapping_mul(487);
        let length = u32::from(NUMBERS.end - NUMBERS.start);
        for _ in 0..length {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let offset = start.wrapping_add(step) % length;
            let number = NUMBERS.start + offset as u16;
            let Ok(lock) = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)) else {
                continue;
            };
            if is_free(number) {
                return Port {
                    number,
                    _lock: lock,
                };
            }
        }
        panic!("no free port in {NUMBERS:?}");
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

fn is_free(number: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok()
        && TcpListener::bind((Ipv6Addr::UNSPECIFIED, number)).is_ok()
}

#[test]
fn reserved_ports_differ_and_can_be_bound() {
    let ports: Vec<Port> = (0..20).map(|_| Port::reserve()).collect();
    for (i, port) in ports.iter().enumerate() {
        assert!(
            ports[..i]
                .iter()
                .all(|other| other.number() != port.number())
        );
        TcpListener::bind((Ipv4Addr::LOCALHOST, port.number()))
            .expect("the number is free for TCP");
    }
}
