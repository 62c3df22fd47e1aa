//! Who a process is, in words that no other process ever has, and whether it lives.

use std::fs;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::fault;

/// Host, boot, process namespace, process and when it started. What cannot be known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Who {
    pub(super) host: String,
    boot: String,
    space: String,
    pub(super) process: String,
    start: String,
}

impl Who {
    /// This process.
    pub(super) fn me() -> &'static Self {
        static ME: OnceLock<Who> = OnceLock::new();
        ME.get_or_init(|| Who::of(std::process::id()))
    }

    /// A process beside this one.
    pub(super) fn of(process: u32) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        // Where /proc shows the processes of another namespace, numbers mean other processes there: nobody can be asked
        // after, and heartbeats decide.
        let own = fs::read_link("/proc/self").is_ok_and(|own| own.as_os_str() == &*std::process::id().to_string());
        let space = fs::read_link("/proc/self/ns/pid").ok().filter(|_| own);
        let start = stat_of(&process.to_string()).ok().and_then(|stat| start_in(&stat).map(str::to_owned));
        let (host, boot) = match fault::setting("RECANT_HOST") {
            Some(host) => (host.clone(), host),
            None => (read("/proc/sys/kernel/hostname"), read("/proc/sys/kernel/random/boot_id")),
        };
        Self {
            host,
            boot,
            space: space.map(|link| link.display().to_string()).unwrap_or_default(),
            process: process.to_string(),
            start: start.filter(|_| own).unwrap_or_default(),
        }
    }

    /// Five lines, as claims and pins begin.
    pub(super) fn words(&self) -> String {
        let Self { host, boot, space, process, start } = self;
        format!("{host}\n{boot}\n{space}\n{process}\n{start}")
    }

    pub(crate) fn from_words(text: &str) -> Self {
        let mut lines = text.lines().map(str::to_owned);
        let mut next = || lines.next().unwrap_or_default();
        Self { host: next(), boot: next(), space: next(), process: next(), start: next() }
    }

    /// For names of files: all but the host.
    pub(super) fn tag(&self) -> String {
        let plain = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).collect::<String>();
        let Self { boot, space, process, start, .. } = self;
        format!("{}.{}.{}.{}", plain(boot), plain(space), plain(process), plain(start))
    }

    /// Whether the process lives, where it can be asked after: same boot, same process namespace.
    pub(crate) fn lives(&self) -> Option<bool> {
        let here = Self::me();
        let beside =
            !self.boot.is_empty() && self.boot == here.boot && !self.space.is_empty() && self.space == here.space;
        lives(&self.process, &self.start).filter(|_| beside)
    }
}

/// The same of the one who wrote a file with that name: PREFIX.TAG.REST.
pub(crate) fn writer_lives(name: &str) -> Option<bool> {
    let here = Who::me().tag();
    let (own, theirs): (Vec<&str>, Vec<&str>) = (here.split('.').collect(), name.split('.').skip(1).collect());
    let beside = theirs.len() >= 4 && own[..2] == theirs[..2] && !own[0].is_empty() && !own[1].is_empty();
    if beside { lives(theirs[2], theirs[3]) } else { None }
}

/// None where that cannot be known.
fn lives(process: &str, start: &str) -> Option<bool> {
    // By way of a number without sign: what is no number of a process must not get that far.
    let number = process.parse::<u32>().ok().and_then(|number| i32::try_from(number).ok()).and_then(Pid::from_raw)?;
    match stat_of(process) {
        Ok(stat) => Some(!start.is_empty() && start_in(&stat) == Some(start)),
        // `/proc` may hide the processes of other users; a signal that may not be sent tells that they are there.
        Err(_) if test_kill_process(number) == Err(Errno::PERM) => None,
        Err(_) => Some(false),
    }
}

fn stat_of(process: &str) -> std::io::Result<String> {
    fs::read_to_string(format!("/proc/{process}/stat"))
}

/// When a process started, in ticks since boot: the 22nd field of /proc/PID/stat. None where it is dead, also where
/// its parent has not asked how it died.
fn start_in(stat: &str) -> Option<&str> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") { None } else { fields.nth(18) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_tags_say_who() {
        let me = Who::me();
        assert_eq!(Who::from_words(&me.words()), *me);
        assert_eq!(me.lives(), Some(true));
        assert_eq!(writer_lives(&format!("new.{}.x1y2", me.tag())), Some(true));
        assert_eq!(writer_lives("new-x1y2"), None);
        assert_eq!(Who::from_words("").lives(), None);
        for process in ["-5", "0", "4294967295", "x"] {
            assert_eq!(Who { process: process.to_owned(), ..me.clone() }.lives(), None, "{process}");
        }
        let elsewhere = Who { boot: "another".to_owned(), ..me.clone() };
        assert_eq!((elsewhere.lives(), writer_lives(&format!("new.{}.x", elsewhere.tag()))), (None, None));
    }

    #[test]
    fn one_whose_parent_does_not_ask_how_it_died_is_dead_all_the_same() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let who = Who::of(child.id());
        assert_eq!(who.lives(), Some(true));
        child.kill().unwrap();
        // It takes the kernel a moment.
        let begun = std::time::Instant::now();
        while who.lives() == Some(true) && begun.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        assert_eq!(who.lives(), Some(false));
        child.wait().unwrap();
        assert_eq!(who.lives(), Some(false));
    }
}
