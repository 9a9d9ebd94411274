//! Says in the log which options of a handshake were answered with an error.

use taipan_nbd::RefusedOption;

/// Lines for one handshake: a client that lists may ask for thousands of exports.
const LINES_MAX: u32 = 16;

/// What was said of a handshake.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    lines: u32,
}

impl RefusalLog {
    /// These were refused.
    pub(super) fn note(&mut self, refused: &[RefusedOption], peer: &str) {
        for refused in refused {
            if self.lines == LINES_MAX {
                return;
            }
            self.lines += 1;
            tracing::info!(
                peer,
                option = refused.option_name(),
                number = refused.option,
                volume = refused.export.as_deref(),
                error = refused.error_name(),
                cause = refused.text,
                last = (self.lines == LINES_MAX).then_some("further ones are not told"),
                "option refused"
            );
        }
    }
}
