// SPDX-License-Identifier: Apache-2.0
//! The daemon begins anew in its own process: after a volume was mounted anew, everything that is open (lock, ledger,
//! socket, file events, workers' files) lies on the old mount. A start knows how to go on from any moment.

use std::env;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Executes the running program with the arguments of this process, whatever has been installed under its name since; its
/// number stays. Workers end with the thread that started them. Returns only where that fails.
pub(super) fn begin() -> io::Error {
    let mut arguments = env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // It was said of the volumes that were there then.
    command.args(arguments.filter(|argument| argument != "--adopt")).exec()
}
