//! Carrying out a reload: new sockets first, then the one swap, then what follows from it.

use http::StatusCode;

use super::logs::Logs;
use super::service::{Change, Handle, Opened};
use crate::admin::{Refusal, Reloaded};
use crate::issue::Issues;
use crate::net::Bind;
use crate::runtime::reload::{Prepared, Reloader};
use crate::runtime::{Snapshot, tasks};

/// What came of a good file.
pub(super) enum Reload {
    Done(Reloaded),
    /// Nothing has changed: only a new process can take what it says.
    NeedsProcess(Reloaded),
}

/// Reloads, or says why not; then nothing has changed. Either goes to the log as well. What only a new process can take is
/// refused unless this one `can_swap` places with one.
pub(super) fn reload(
    reloader: &Reloader,
    services: &[Handle],
    logs: &Logs,
    can_swap: bool,
) -> Result<Reload, Refusal> {
    let refuse = |refusal: Refusal| {
        log::error!("reload failed: {}", refusal.error);
        refusal
    };
    let prepared = reloader.prepare(can_swap).map_err(|issues| {
        report(&issues);
        refuse(mistakes(reloader, &issues))
    })?;
    report(&prepared.warnings);
    let reloaded = describe(reloader, &prepared);
    if !reloaded.start_only.is_empty() {
        let keys = reloaded.start_only.join(", ");
        log::info!("only a new process can take what the file says for {keys}");
        return Ok(Reload::NeedsProcess(reloaded));
    }
    let generation = carry_out(prepared, reloader, services, logs).map_err(|e| {
        let error = format!("{e:#}; nothing has changed");
        refuse(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error))
    })?;
    log::info!("reloaded {}: generation {generation}", reloader.source());
    Ok(Reload::Done(reloaded))
}

/// What a reload would come to.
pub(super) fn rehearse(reloader: &Reloader, can_swap: bool) -> Result<Reloaded, Refusal> {
    match reloader.rehearse(can_swap).0 {
        Ok(prepared) => Ok(Reloaded {
            dry_run: true,
            ..describe(reloader, &prepared)
        }),
        Err(issues) => Err(mistakes(reloader, &issues)),
    }
}

fn describe(reloader: &Reloader, prepared: &Prepared) -> Reloaded {
    Reloaded {
        file: reloader.source().to_string(),
        dry_run: false,
        generation: prepared.snapshot.generation,
        changes: prepared.changes.clone(),
        start_only: prepared
            .start_only
            .iter()
            .map(ToString::to_string)
            .collect(),
        upgraded: None,
        warnings: prepared.warnings.to_string(),
    }
}

fn mistakes(reloader: &Reloader, issues: &Issues) -> Refusal {
    let (file, errors) = (reloader.source(), issues.errors());
    let error = format!("mistakes in {file}: {errors}; nothing has changed");
    Refusal::mistakes(error, issues)
}

fn carry_out(
    prepared: Prepared,
    reloader: &Reloader,
    services: &[Handle],
    logs: &Logs,
) -> anyhow::Result<u64> {
    let mut closed = Vec::new();
    let opened: Vec<Opened> = services
        .iter()
        .map(|service| open_new(service, &prepared.snapshot, &mut closed))
        .collect();
    if !closed.is_empty() {
        anyhow::bail!("cannot listen on {}", closed.join(", nor on "));
    }
    let probes = tasks::first_probes(&prepared.snapshot);
    tokio::runtime::Handle::current().block_on(probes);
    logs.follow(&prepared.snapshot)?;
    let snapshot = reloader.commit(prepared);
    for (service, opened) in services.iter().zip(opened) {
        service.follow(Change {
            snapshot: snapshot.clone(),
            opened,
        });
    }
    Ok(snapshot.generation)
}

/// Opens the sockets that the snapshot wants and the service does not have; `closed` tells of those that cannot be.
fn open_new(service: &Handle, snapshot: &Snapshot, closed: &mut Vec<String>) -> Opened {
    let wanted = snapshot
        .listeners(service.part)
        .values()
        .flat_map(|listener| &listener.binds);
    let new = wanted.filter(|bind| !service.is_listening_on(bind));
    let open = |bind: &Bind| match bind.listen() {
        Ok(socket) => Some((bind.clone(), socket)),
        Err(e) => {
            closed.push(format!("{bind}: {e}"));
            None
        }
    };
    new.filter_map(open).collect()
}

fn report(issues: &Issues) {
    for issue in &issues.0 {
        let level = match issue.severity {
            crate::issue::Severity::Error => log::Level::Error,
            crate::issue::Severity::Warning => log::Level::Warn,
        };
        log::log!(level, "{}", issue.headline());
    }
}
