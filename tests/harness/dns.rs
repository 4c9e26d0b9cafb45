//! A small name server on loopback, over UDP and TCP, that says what a test wants it to.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use super::runtime;

/// What the server says about a name.
#[derive(Clone, Debug)]
enum Says {
    Records(Vec<Record>),
    /// Any response code; with `NXDOMAIN` for all that it knows nothing about.
    Code(u8),
    /// Nothing, ever.
    Silence,
}

#[derive(Clone, Debug)]
struct Record {
    ttl: u32,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Ip(IpAddr),
    Alias(String),
    Service(u16, u16, u16, String),
}

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const SRV: u16 = 33;

#[derive(Default)]
struct Zone {
    /// By name and, where the kind of record matters, its number.
    says: BTreeMap<(String, Option<u16>), Says>,
    /// Names in the order in which they were asked for, with the kind of record.
    asked: Vec<(String, u16)>,
    /// Whether UDP says no more than that TCP would.
    truncates: bool,
    /// Questions that came over TCP.
    by_tcp: usize,
}

/// A name server; silent once it is dropped.
pub struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Dns {
    /// Knows no name yet.
    pub fn start() -> Dns {
        let (udp, tcp) = runtime().block_on(bind());
        let address = udp.local_addr().expect("a bound socket has an address");
        let zone = Arc::default();
        let tasks = vec![
            runtime().spawn(serve_udp(udp, Arc::clone(&zone))),
            runtime().spawn(serve_tcp(tcp, Arc::clone(&zone))),
        ];
        Dns {
            address,
            zone,
            tasks,
        }
    }

    /// From now on `name` stands for these addresses.
    pub fn set(&self, name: &str, ttl: u32, ips: &[&str]) {
        let ip = |ip: &&str| Record {
            ttl,
            data: Data::Ip(ip.parse().expect("an IP address")),
        };
        self.say(name, None, Says::Records(ips.iter().map(ip).collect()));
    }

    /// From now on `name` is another name for `target`.
    pub fn set_alias(&self, name: &str, ttl: u32, target: &str) {
        let data = Data::Alias(target.to_owned());
        self.say(name, None, Says::Records(vec![Record { ttl, data }]));
    }

    /// From now on `name` has these SRV records: priority, weight, port and host.
    pub fn set_service(&self, name: &str, ttl: u32, records: &[(u16, u16, u16, &str)]) {
        let record = |(priority, weight, port, host): &(u16, u16, u16, &str)| Record {
            ttl,
            data: Data::Service(*priority, *weight, *port, (*host).to_owned()),
        };
        let records = records.iter().map(record).collect();
        self.say(name, None, Says::Records(records));
    }

    /// From now on there is no such name.
    pub fn remove(&self, name: &str) {
        self.say(name, None, Says::Code(NXDOMAIN));
    }

    /// From now on asking for `name` fails.
    pub fn fail(&self, name: &str) {
        self.say(name, None, Says::Code(SERVFAIL));
    }

    /// From now on asking for the IPv6 addresses of `name` fails; the rest stays.
    pub fn fail_ipv6(&self, name: &str) {
        self.say(name, Some(AAAA), Says::Code(SERVFAIL));
    }

    /// From now on asking for `name` brings no answer.
    pub fn ignore(&self, name: &str) {
        self.say(name, None, Says::Silence);
    }

    /// Answers are too long for UDP from now on.
    pub fn truncate(&self) {
        lock(&self.zone).truncates = true;
    }

    /// How often the addresses (IPv4) or SRV records of `name` were asked for.
    pub fn asked(&self, name: &str) -> usize {
        let zone = lock(&self.zone);
        let asked = zone.asked.iter();
        asked
            .filter(|(asked, kind)| asked == name && *kind != AAAA)
            .count()
    }

    pub fn asked_by_tcp(&self) -> usize {
        lock(&self.zone).by_tcp
    }

    /// Ends the server: nobody is at its address any more.
    pub fn kill(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = runtime().block_on(task); // cancelled, as it should be
        }
    }

    fn say(&self, name: &str, kind: Option<u16>, says: Says) {
        lock(&self.zone).says.insert((name.to_owned(), kind), says);
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The address as in `resolver: { servers: }`.
impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

fn lock(zone: &Mutex<Zone>) -> MutexGuard<'_, Zone> {
    zone.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sockets of both kinds with the same number.
async fn bind() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let udp = udp.expect("bind a UDP socket");
        let address = udp.local_addr().expect("a bound socket has an address");
        if let Ok(tcp) = TcpListener::bind(address).await {
            return (udp, tcp);
        }
    }
    panic!("no number is free for both UDP and TCP");
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 512];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        let reply = lock(&zone).reply(&buffer[..length], true);
        if let Some(reply) = reply {
            let _ = socket.send_to(&reply, peer).await; // the peer may be gone
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let zone = Arc::clone(&zone);
        tokio::spawn(async move {
            let mut talk = async || -> io::Result<()> {
                loop {
                    let length = stream.read_u16().await?;
                    let mut question = vec![0; length.into()];
                    stream.read_exact(&mut question).await?;
                    let reply = lock(&zone).reply(&question, false);
                    if let Some(reply) = reply {
                        stream.write_u16(reply.len() as u16).await?;
                        stream.write_all(&reply).await?;
                    }
                }
            };
            let _ = talk().await; // until the peer has enough
        });
    }
}

impl Zone {
    /// The answer to a question (RFC 1035, section 4); `None` for silence and for what is no question.
    fn reply(&mut self, question: &[u8], udp: bool) -> Option<Vec<u8>> {
        let (name, end) = read_name(question, 12)?;
        let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
        self.asked.push((name.clone(), kind));
        self.by_tcp += usize::from(!udp);
        let exact = self.says.get(&(name.clone(), Some(kind)));
        let says = exact.or_else(|| self.says.get(&(name.clone(), None)));
        let (code, mut records) = match says {
            Some(Says::Records(records)) => (0, self.matching(&name, records, kind)),
            Some(Says::Code(code)) => (*code, Vec::new()),
            Some(Says::Silence) => return None,
            None => (NXDOMAIN, Vec::new()),
        };
        let truncated = udp && self.truncates && !records.is_empty();
        if truncated {
            records.clear();
        }
        let mut reply = question.get(..2)?.to_vec();
        // an answer of an authority that would also ask others
        reply.extend([0x85 | if truncated { 0x02 } else { 0 }, 0x80 | code]);
        reply.extend([0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        reply.extend(question.get(12..end + 4)?);
        for (name, record) in &records {
            record.write(name, &mut reply);
        }
        Some(reply)
    }

    /// The records of one kind, by way of at most one alias.
    fn matching(&self, name: &str, records: &[Record], kind: u16) -> Vec<(String, Record)> {
        let mut found = Vec::new();
        for record in records {
            if record.kind() == kind {
                found.push((name.to_owned(), record.clone()));
            }
            if let Data::Alias(target) = &record.data {
                found.push((name.to_owned(), record.clone()));
                if let Some(Says::Records(records)) = self.says.get(&(target.clone(), None)) {
                    let records = records.iter().filter(|record| record.kind() == kind);
                    found.extend(records.map(|record| (target.clone(), record.clone())));
                }
            }
        }
        found
    }
}

impl Record {
    fn kind(&self) -> u16 {
        match self.data {
            Data::Ip(IpAddr::V4(_)) => A,
            Data::Ip(IpAddr::V6(_)) => AAAA,
            Data::Alias(_) => CNAME,
            Data::Service(..) => SRV,
        }
    }

    fn write(&self, name: &str, reply: &mut Vec<u8>) {
        let mut data = Vec::new();
        match &self.data {
            Data::Ip(IpAddr::V4(ip)) => data.extend(ip.octets()),
            Data::Ip(IpAddr::V6(ip)) => data.extend(ip.octets()),
            Data::Alias(target) => write_name(target, &mut data),
            Data::Service(priority, weight, port, host) => {
                for number in [priority, weight, port] {
                    data.extend(number.to_be_bytes());
                }
                write_name(host, &mut data);
            }
        }
        write_name(name, reply);
        reply.extend(self.kind().to_be_bytes());
        reply.extend(1_u16.to_be_bytes()); // IN
        reply.extend(self.ttl.to_be_bytes());
        reply.extend((data.len() as u16).to_be_bytes());
        reply.extend(data);
    }
}

/// A name without its last dot, in lower case, and where it ends. Questions use no compression.
fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = message.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}

fn write_name(name: &str, out: &mut Vec<u8>) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.push(0);
}
