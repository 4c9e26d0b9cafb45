//! What a pick costs, by algorithm and number of members: who gets the next request, counted in and out again.
//!
//! `idle` members have nothing to do, which is where algorithms that look at running requests may stop early;
//! of `busy` ones each has a few requests, no two neighbours the same number, so that all that are to be compared are.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use weir::issue::{At, Issues, Sources};
use weir::pool::balance::key_of;
use weir::pool::{Choice, Config, InFlight, Names, Pick, Pool, Tried, resolver};

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = picks
}
criterion_main!(benches);

/// As the document writes them.
const BALANCES: [&str; 7] = [
    r#""round_robin""#,
    r#""least_conn""#,
    r#""random""#,
    r#""p2c""#,
    r#""ewma""#,
    r#""ip_hash""#,
    r#"{"hash": "$uri"}"#,
];

fn picks(criterion: &mut Criterion) {
    for balance in BALANCES {
        for load in ["idle", "busy"] {
            let name: String = balance.chars().filter(|c| !"\"{} ".contains(*c)).collect();
            let mut group = criterion.benchmark_group(format!("{name}/{load}"));
            for count in [2, 10, 100, 1_000] {
                let pool = pool(balance, count);
                let start = Instant::now();
                let running = match load {
                    "idle" => Vec::new(),
                    _ => running(&pool, start),
                };
                let now = start + Duration::from_secs(1);
                let mut number = 0u64;
                group.bench_function(BenchmarkId::from_parameter(count), |b| {
                    b.iter(|| {
                        number += 1;
                        let choice = Choice {
                            client: Some(std::net::IpAddr::V4((number as u32).into())),
                            key: key_of(&number.to_le_bytes()),
                            ..Choice::any(now, fastrand::u64(..))
                        };
                        let picked = pool.pick(black_box(&choice), &mut Tried::default());
                        assert!(matches!(black_box(picked), Pick::Member(_)));
                    });
                });
                drop(running);
            }
        }
    }
}

fn pool(balance: &str, count: usize) -> std::sync::Arc<Pool> {
    let backends = (0..count).map(|i| format!("\"127.1.{}.{}:80\"", i / 256, i % 256));
    let backends = backends.collect::<Vec<_>>().join(", ");
    let text = format!(r#"{{"balance": {balance}, "backends": [{backends}]}}"#);
    let config: Config = serde_json::from_str(&text).expect("a pool");
    let (sources, mut issues) = (Sources::default(), Issues::default());
    let resolver = resolver::Config::default().compile(&At::Root, &mut issues);
    let names = Names::look_up(resolver, [&config], None);
    let pool = config.compile("app", None, &names, &At::Root, &sources, &mut issues);
    pool.expect("nothing is wrong")
}

/// Between one and seven requests for each member, which answered all of them.
fn running(pool: &Pool, now: Instant) -> Vec<InFlight> {
    let members = pool.members();
    let mut running = Vec::new();
    for (i, member) in members.iter().enumerate() {
        let more = i * 3 % 7;
        let requests = (0..=more).filter_map(|_| member.begin());
        running.extend(requests.inspect(|request| {
            let latency = Duration::from_millis(1 + more as u64);
            request.answered(latency, now);
        }));
    }
    running
}
