//! Samples in, two tables out: absolute figures, and weir's ratio to the others.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::load::Done;
use crate::server::Server;
use crate::{CASES, Case};

/// One measurement of one server in one case.
pub struct Sample {
    traffic: Option<Traffic>,
    /// Bytes; of one connection in the idle case, of all processes of the server otherwise.
    memory: f64,
}

struct Traffic {
    per_second: f64,
    cpu_micros: f64,
    p99_millis: f64,
    failed: u64,
}

impl Sample {
    pub fn traffic(done: &Done, cpu: Duration, memory: u64) -> Self {
        Sample {
            traffic: Some(Traffic {
                per_second: done.per_second,
                cpu_micros: cpu.as_secs_f64() * 1e6 / done.requests as f64,
                p99_millis: done.p99.as_secs_f64() * 1e3,
                failed: done.failed,
            }),
            memory: memory as f64,
        }
    }

    pub fn idle(memory_per_connection: f64) -> Self {
        Sample {
            traffic: None,
            memory: memory_per_connection,
        }
    }
}

/// The line of progress that appears while the bench runs.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.traffic {
            Some(t) => {
                write!(
                    f,
                    "{:>9.0}/s {:>9.1} us CPU {:>8.2} ms p99",
                    t.per_second, t.cpu_micros, t.p99_millis
                )?;
                if t.failed > 0 {
                    write!(f, "  {} FAILED", t.failed)?;
                }
                Ok(())
            }
            None => write!(f, "{:>9.1} KiB per connection", self.memory / 1024.0),
        }
    }
}

/// The figures of a table, in its columns' order. A smaller one is better, except of `RATE`.
const COLUMNS: [&str; 4] = ["CPU us/req", "requests/s", "p99 ms", "memory KiB"];
const RATE: usize = 1;
/// Wide enough for the longest name of a case.
const NAME: usize = 12;

#[derive(Default)]
pub struct Report {
    samples: BTreeMap<(&'static str, Server), Vec<Sample>>,
}

/// Medians over the rounds; `None` where a case has no such figure.
struct Summary {
    figures: [Option<f64>; COLUMNS.len()],
    /// How far the rounds lie apart in CPU, as a part of their median.
    spread: Option<f64>,
    failed: u64,
}

impl Report {
    pub fn add(&mut self, case: &Case, server: Server, sample: Sample) {
        self.samples
            .entry((case.name, server))
            .or_default()
            .push(sample);
    }

    pub fn print(&self) {
        println!("\nMedians; spread is (max - min) / median of CPU over the rounds\n");
        println!(
            "{:<NAME$} {:<8} {:>11} {:>7} {:>11} {:>9} {:>11} {:>7}",
            "case", "server", COLUMNS[0], "spread", COLUMNS[RATE], COLUMNS[2], COLUMNS[3], "failed"
        );
        for case in &CASES {
            for server in Server::ALL {
                let Some(summary) = self.summary(case, server) else {
                    continue;
                };
                let [cpu, rate, p99, memory] = summary.figures;
                println!(
                    "{:<NAME$} {:<8} {:>11} {:>7} {:>11} {:>9} {:>11} {:>7}",
                    case.name,
                    server.name(),
                    number(cpu, 1),
                    summary
                        .spread
                        .map_or("-".to_owned(), |spread| format!("{:.0}%", spread * 100.0)),
                    number(rate, 0),
                    number(p99, 2),
                    number(memory, 1),
                    summary.failed,
                );
            }
        }
        for other in [Server::Nginx, Server::Haproxy] {
            self.print_ratios(other);
        }
        println!();
        for case in CASES.iter().filter(|case| {
            Server::ALL
                .iter()
                .any(|server| self.summary(case, *server).is_some())
        }) {
            println!("{:<NAME$} {}", case.name, case.what);
        }
    }

    fn print_ratios(&self, other: Server) {
        let rows: Vec<_> = CASES
            .iter()
            .filter_map(|case| {
                Some((
                    case,
                    self.summary(case, Server::Weir)?,
                    self.summary(case, other)?,
                ))
            })
            .collect();
        if rows.is_empty() {
            return;
        }
        println!(
            "\nweir / {} (below 1.00 weir takes less; of requests/s, above 1.00 it does more)\n",
            other.name()
        );
        println!(
            "{:<NAME$} {:>11} {:>11} {:>11} {:>11}",
            "case", "CPU", COLUMNS[RATE], "p99", "memory"
        );
        for (case, weir, other) in rows {
            print!("{:<NAME$}", case.name);
            for (ours, theirs) in weir.figures.into_iter().zip(other.figures) {
                let ratio = ours
                    .zip(theirs)
                    .filter(|(_, theirs)| *theirs > 0.0)
                    .map(|(ours, theirs)| ours / theirs);
                print!(" {:>11}", number(ratio, 2));
            }
            println!();
        }
    }

    fn summary(&self, case: &Case, server: Server) -> Option<Summary> {
        let samples = self.samples.get(&(case.name, server))?;
        let traffic = |figure: fn(&Traffic) -> f64| -> Vec<f64> {
            samples
                .iter()
                .filter_map(|sample| sample.traffic.as_ref())
                .map(figure)
                .collect()
        };
        let cpu = traffic(|t| t.cpu_micros);
        let middle = median(cpu.clone());
        let most = cpu.iter().copied().reduce(f64::max);
        let least = cpu.iter().copied().reduce(f64::min);
        Some(Summary {
            figures: [
                middle,
                median(traffic(|t| t.per_second)),
                median(traffic(|t| t.p99_millis)),
                median(
                    samples
                        .iter()
                        .map(|sample| sample.memory / 1024.0)
                        .collect(),
                ),
            ],
            spread: most
                .zip(least)
                .zip(middle)
                .map(|((most, least), middle)| (most - least) / middle),
            failed: samples
                .iter()
                .filter_map(|sample| sample.traffic.as_ref())
                .map(|t| t.failed)
                .sum(),
        })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}
