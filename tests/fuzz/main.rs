//! Runs the parsers of weir on input that nobody has thought of (`targets.rs` says what must hold of each of them).
//!
//! ```text
//! make fuzz                                 two minutes for each parser
//! make fuzz FUZZ="--seconds 600 path head"  longer, and only these
//! cargo run --example fuzz                  what `make lint` does: some rounds of each, always the same ones
//! cargo run --example fuzz -- path FILE     one input
//! ```
//!
//! It begins with the inputs of `corpus/`: good examples, and whatever was found to be wrong once. Each round changes one
//! of them at random. `make fuzz` builds weir such that it tells which of its branches an input has reached: what reaches a
//! new one becomes an example, too, for the time being. What fails is shortened and left in `target/fuzz`: it belongs into
//! the corpus, under a name that says what was wrong.

mod coverage;
mod mutate;
mod targets;

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use targets::{TARGETS, Target};

/// Of each target, without `--seconds`; fewer where they take longer than [`MOST`].
const ROUNDS: u64 = 20_000;
const MOST: Duration = Duration::from_secs(2);
/// No input may take so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts the runs, for who watches that they come to an end; and the input that is run.
static RUNS: AtomicU64 = AtomicU64::new(0);
static RUNNING: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// What the command line asks for.
#[derive(Default)]
struct Wanted {
    targets: Vec<&'static Target>,
    inputs: Vec<PathBuf>,
    seconds: Option<u64>,
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let mut wanted = match arguments() {
        Ok(wanted) => wanted,
        Err(message) => {
            eprintln!("fuzz: {message}");
            return ExitCode::from(2);
        }
    };
    if wanted.targets.is_empty() {
        wanted.targets = TARGETS.iter().collect();
    }
    // Said once more at the end, without a backtrace for each try to shorten it.
    panic::set_hook(Box::new(|_| {}));
    thread::spawn(watch);
    let mut failed = false;
    for target in &wanted.targets {
        let found = match wanted.inputs.is_empty() {
            true => fuzz(target, &wanted),
            false => replay(target, &wanted.inputs),
        };
        if let Err(found) = found {
            failed = true;
            eprintln!("{}: {found}", target.name);
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn arguments() -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|value| value.parse().ok());
            value.ok_or(format!("{argument} needs a number"))
        };
        match argument.as_str() {
            "--seconds" => wanted.seconds = Some(number()?),
            "--seed" => wanted.seed = Some(number()?),
            name => match TARGETS.iter().find(|target| target.name == name) {
                Some(target) => wanted.targets.push(target),
                None if Path::new(name).is_file() => wanted.inputs.push(name.into()),
                None => {
                    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                    return Err(format!(
                        "no target and no file `{name}`; targets: {}",
                        names.join(" ")
                    ));
                }
            },
        }
    }
    Ok(wanted)
}

fn replay(target: &Target, inputs: &[PathBuf]) -> Result<(), String> {
    for input in inputs {
        let bytes = fs::read(input).map_err(|e| format!("{}: {e}", input.display()))?;
        run(target, &bytes).map_err(|why| format!("{}: {why}", input.display()))?;
    }
    Ok(())
}

fn fuzz(target: &Target, wanted: &Wanted) -> Result<(), String> {
    let mut examples = Vec::new();
    for file in corpus(target)? {
        let bytes = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        run(target, &bytes).map_err(|why| format!("{}: {why}", file.display()))?;
        coverage::is_new();
        examples.push(bytes);
    }
    let given = examples.len();
    // The same each time, but where somebody has time for more.
    let seed = wanted.seed.unwrap_or_else(|| match wanted.seconds {
        Some(_) => fastrand::u64(..),
        None => 0,
    });
    let mut rng = Rng::with_seed(seed);
    let (started, mut rounds) = (Instant::now(), 0);
    let end = wanted.seconds.map_or(MOST, Duration::from_secs);
    let most = wanted.seconds.map_or(ROUNDS, |_| u64::MAX);
    while rounds < most && started.elapsed() < end {
        rounds += 1;
        // Rather a late one: it is where something new was found.
        let at = rng.usize(..examples.len()).max(rng.usize(..examples.len()));
        let other = &examples[rng.usize(..examples.len())];
        let input = mutate::mutate(&examples[at], other, &mut rng);
        if let Err(why) = run(target, &input) {
            let (input, why) = shorten(target, input, why);
            let kept = keep(target, &input);
            let text = input.escape_ascii();
            return Err(format!(
                "{why}\n  with \"{text}\"\n  kept in {kept}; --seed {seed}"
            ));
        }
        if coverage::is_new() {
            examples.push(input);
        }
    }
    let found = examples.len() - given;
    match coverage::is_built_in() {
        true => println!(
            "{}: {rounds} rounds, {found} of them with something new (seed {seed})",
            target.name
        ),
        false => println!("{}: {rounds} rounds", target.name),
    }
    Ok(())
}

/// The inputs to begin with, in an order that does not depend on the file system.
fn corpus(target: &Target) -> Result<Vec<PathBuf>, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target.name);
    let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    match files.is_empty() {
        true => Err(format!("{}: there is no example", folder.display())),
        false => Ok(files),
    }
}

/// Runs a target once; why it failed, if it did.
fn run(target: &Target, input: &[u8]) -> Result<(), String> {
    {
        let mut running = RUNNING.lock().expect("nobody panics with it");
        running.clear();
        running.extend_from_slice(input);
    }
    RUNS.fetch_add(1, Ordering::Relaxed);
    coverage::begin();
    panic::catch_unwind(|| (target.holds)(input)).map_err(|why| {
        let text = why.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| why.downcast_ref::<&str>().copied());
        text.unwrap_or("a panic").to_owned()
    })
}

/// Takes away what is not needed for a failure.
fn shorten(target: &Target, mut input: Vec<u8>, mut why: String) -> (Vec<u8>, String) {
    let mut piece = input.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(input.len()));
            match run(target, &shorter) {
                Ok(()) => at += piece,
                Err(other) => (input, why) = (shorter, other),
            }
        }
        piece /= 2;
    }
    (input, why)
}

fn keep(target: &Target, input: &[u8]) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
    let file = folder.join(format!("{}-{}", target.name, input.len()));
    let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, input));
    match written {
        Ok(()) => file.display().to_string(),
        Err(e) => format!("no file: {e}"),
    }
}

/// Ends the program when an input takes too long.
fn watch() {
    let mut last = 0;
    loop {
        thread::sleep(PATIENCE);
        let now = RUNS.load(Ordering::Relaxed);
        if now == last && now > 0 {
            let input = RUNNING.lock().expect("nobody panics with it");
            eprintln!(
                "takes longer than {PATIENCE:?}: \"{}\"",
                input.escape_ascii()
            );
            std::process::exit(1);
        }
        last = now;
    }
}
