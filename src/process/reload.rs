//! Carrying out a reload: new sockets first, then the one swap, then what follows from it.

use std::sync::Arc;

use super::logs::Logs;
use super::service::{Change, Handle, Opened};
use crate::issue::Issues;
use crate::runtime::Snapshot;
use crate::runtime::reload::Reloader;

/// Reloads, or reports why not; then nothing has changed.
pub(super) fn reload(reloader: &Reloader, services: &[Handle], logs: &Logs) {
    let file = reloader.source();
    let (snapshot, warnings) = match reloader.prepare() {
        Ok(prepared) => prepared,
        Err(issues) => {
            report(&issues);
            let errors = issues.errors();
            return log::error!("reload failed: mistakes in {file}: {errors}; nothing has changed");
        }
    };
    report(&warnings);
    match carry_out(snapshot, reloader, services, logs) {
        Ok(generation) => log::info!("reloaded {file}: generation {generation}"),
        Err(e) => log::error!("reload failed: {e:#}; nothing has changed"),
    }
}

fn carry_out(
    snapshot: Snapshot,
    reloader: &Reloader,
    services: &[Handle],
    logs: &Logs,
) -> anyhow::Result<u64> {
    let mut opened = Vec::new();
    for service in services {
        opened.push(open_new(service, &snapshot)?);
    }
    logs.follow(&snapshot.log)?;
    let snapshot = Arc::new(snapshot);
    snapshot.present_certificates();
    reloader.live().store(snapshot.clone());
    for (service, opened) in services.iter().zip(opened) {
        service.follow(Change {
            snapshot: snapshot.clone(),
            opened,
        });
    }
    Ok(snapshot.generation)
}

/// Opens the sockets that the snapshot wants and the service does not have.
fn open_new(service: &Handle, snapshot: &Snapshot) -> anyhow::Result<Opened> {
    let wanted = snapshot
        .listeners(service.part)
        .values()
        .flat_map(|listener| &listener.binds);
    let new = wanted.filter(|bind| !service.is_listening_on(bind));
    new.map(|bind| match bind.listen() {
        Ok(socket) => Ok((bind.clone(), socket)),
        Err(e) => Err(anyhow::Error::new(e).context(format!("cannot listen on {bind}"))),
    })
    .collect()
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
