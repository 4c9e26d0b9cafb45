//! What routing costs, by the number of sites and routes.
//!
//! `host/*` finds the site, `route/*` the route within one site, `request/*` both, with ten routes per site; `compile`
//! makes all tables. Each lookup takes another host or path than the one before. Where all of ten thousand sites are
//! asked in turn, memory is measured more than routing: nothing of a site is in the processor's caches when its
//! turn comes. `few asked` takes ten of the sites and shows what the size of the tables alone costs.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};

use weir::build::Build;
use weir::filter::Filters;
use weir::issue::{At, Sources};
use weir::router::{RequestFacts, Router, config};

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = hosts, routes, requests, compile
}
criterion_main!(benches);

fn hosts(criterion: &mut Criterion) {
    for (kind, name) in [("exact", ""), ("wildcard", "deep.www.")] {
        let mut group = criterion.benchmark_group(format!("host/{kind}"));
        for count in [10, 1_000, 10_000] {
            let hosts = |i: usize| match kind {
                "exact" => format!("site{i}.example"),
                _ => format!("*.site{i}.example"),
            };
            let router = router(&sites(count, hosts, 1));
            let mut asked = rotation(count, |i| format!("{name}site{i}.example"));
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter(|| {
                    let site = router.find_site("http", black_box(asked.next()));
                    assert!(black_box(site).is_some());
                });
            });
        }
    }
}

fn routes(criterion: &mut Criterion) {
    let regex = |i| format!("match: {{ regex: '^/r{i}/(?<id>[0-9]+)$' }}");
    type Written = fn(usize) -> String;
    let kinds: [(&str, Written, &str); 3] = [
        ("exact", |i| format!("match: {{ path: /r{i} }}"), ""),
        ("prefix", |i| format!("match: {{ prefix: /r{i} }}"), "/x/y"),
        ("regex", regex, "/42"),
    ];
    for (kind, written, rest) in kinds {
        let mut group = criterion.benchmark_group(format!("route/{kind}"));
        for count in [10, 1_000] {
            let routes = (0..count).map(|i| format!("- {{ {}, respond: x }}\n", written(i)));
            let site = format!("hosts: '*'\nroutes:\n{}", routes.collect::<String>());
            let sites = [(
                "all".to_owned(),
                serde_yaml::from_str(&site).expect("a site"),
            )];
            let router = router(&sites);
            let site = router.find_site("http", "any").expect("takes every host");
            let mut paths = rotation(count, |i| format!("/r{i}{rest}"));
            let mut captures = Vec::new();
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter(|| {
                    captures.clear();
                    let facts = facts(black_box(paths.next()));
                    let route = site.find_route(&facts, &mut captures);
                    assert!(black_box(route).is_some());
                });
            });
        }
    }
}

fn requests(criterion: &mut Criterion) {
    for (group, asked) in [("request/few asked", 10), ("request/all asked", usize::MAX)] {
        let mut group = criterion.benchmark_group(group);
        for count in [10, 1_000, 10_000] {
            let router = router(&sites(count, |i| format!("site{i}.example"), 10));
            let mut hosts = rotation(count.min(asked), |i| format!("site{i}.example"));
            let mut captures = Vec::new();
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter(|| {
                    captures.clear();
                    let host = black_box(hosts.next());
                    let site = router.find_site("http", host).expect("a site");
                    let route = site.find_route(&facts(black_box("/p5/x/y")), &mut captures);
                    assert!(black_box(route).is_some());
                });
            });
        }
    }
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for count in [10, 10_000] {
        let sites = sites(count, |i| format!("site{i}.example"), 10);
        group.bench_function(BenchmarkId::new("sites of 10 routes", count), |b| {
            b.iter(|| router(black_box(&sites)));
        });
    }
}

/// Sites with these hosts and number of routes: prefixes, of ten routes one path and one regex, and a last route for
/// everything else.
fn sites(
    count: usize,
    hosts: impl Fn(usize) -> String,
    routes: usize,
) -> Vec<(String, config::Site)> {
    let mut yaml = String::from("routes:\n");
    for i in 0..routes.saturating_sub(1) {
        yaml += &match i % 10 {
            1 => format!("- {{ match: {{ path: /p{i} }}, respond: x }}\n"),
            2 => format!("- {{ match: {{ regex: '^/u{i}/(?<id>[0-9]+)$' }}, respond: $id }}\n"),
            _ => format!("- {{ match: {{ prefix: /p{i} }}, respond: x }}\n"),
        };
    }
    yaml += "- respond: x\n";
    let site: config::Site = serde_yaml::from_str(&yaml).expect("a site");
    let site = |i| {
        let mut site = site.clone();
        site.hosts.0 = vec![hosts(i)];
        (format!("site{i}"), site)
    };
    (0..count).map(site).collect()
}

fn router(sites: &[(String, config::Site)]) -> Router {
    let sources = Sources::default();
    let mut b = Build::new(&sources);
    let sites = sites.iter().map(|(name, site)| (name.as_str(), site));
    let router = Router::compile(&At::Root, &Filters::default(), sites, &["http"], &mut b);
    assert!(b.issues.0.is_empty(), "{:?}", b.issues);
    router
}

fn facts(path: &str) -> RequestFacts<'_> {
    static NONE: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(HeaderMap::new);
    RequestFacts {
        method: &Method::GET,
        path,
        headers: &NONE,
        query: None,
        client: None,
    }
}

/// Asks for `count` texts in turn, in an order that no processor guesses.
struct Rotation {
    texts: Vec<String>,
    at: usize,
}

fn rotation(count: usize, text: impl Fn(usize) -> String) -> Rotation {
    let texts = (0..count).map(text).collect();
    Rotation { texts, at: 0 }
}

impl Rotation {
    fn next(&mut self) -> &str {
        // a step that has no divisor in common with the counts visits all
        self.at = (self.at + 7_919) % self.texts.len();
        &self.texts[self.at]
    }
}
