//! Descriptors that whoever started this process left open for it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// A descriptor of this process by its number, once more: another one for the same file, closed in
/// programs that this process starts. The first one stays open.
///
/// # Errors
/// When no file is open under the number.
pub fn descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is no -1, and it is used for one call, which fails if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_same_file_is_had_by_its_number_and_no_other() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let again = descriptor(other.as_raw_fd()).unwrap();
        drop(other);
        one.write_all(b"x").unwrap();
        let mut byte = [0];
        UnixStream::from(again).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        assert!(descriptor(-1).is_err());
        assert!(descriptor(RawFd::MAX).is_err());
    }
}
