//! Requests and replies after the handshake. Pure.

use super::handshake::{Agreed, Described, Malformed};
use crate::disk::extents::Extent;

/// The bytes of a request before its data.
pub const REQUEST_BYTES: usize = 28;

/// The most bytes that one request reads or writes: what clients may take for granted.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Our number for `base:allocation`.
pub(super) const CONTEXT_ID: u32 = 1;

/// What can be done with an export.
pub mod flags {
    /// There are flags.
    pub const HAS_FLAGS: u16 = 1;
    /// It cannot be written to.
    pub const READ_ONLY: u16 = 1 << 1;
    /// What was written can be made durable.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// A single write can be made durable.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Bytes can be discarded.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Zeros can be written without sending them.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Reads can be answered in one piece.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection is one of all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 1 << 1;
const FLAG_DF: u16 = 1 << 2;
const FLAG_REQ_ONE: u16 = 1 << 3;

const REPLY_DONE: u16 = 1;
const REPLY_OFFSET_DATA: u16 = 1;
const REPLY_BLOCK_STATUS: u16 = 5;
const REPLY_ERROR: u16 = 0x8001;

const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 2;

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes of the disk.
    Read,
    /// Bytes to be written; they follow.
    Write,
    /// An end.
    Disconnect,
    /// That what was written is durable.
    Flush,
    /// Bytes discarded.
    Trim,
    /// Zeros written.
    WriteZeroes,
    /// To know which bytes are in holes.
    BlockStatus,
    /// Something that nobody offered.
    Other,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it wants.
    pub command: Command,
    flags: u16,
    /// The client's name for it.
    pub cookie: u64,
    /// Where on the disk.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
}

/// What a client is told when something fails; the numbers are those of NBD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Failure {
    /// It may not do that.
    Forbidden = 1,
    /// The disk cannot be read or written there.
    Disk = 5,
    /// The request makes no sense.
    Invalid = 22,
    /// There is no room.
    NoSpace = 28,
    /// The request is too long.
    TooLong = 75,
}

impl Request {
    /// Decodes it.
    ///
    /// # Errors
    ///
    /// When it is none: nobody knows any more where the next one begins.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, Malformed> {
        let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) << 16 | u32::from(u16_at(at + 2));
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if u32_at(0) != REQUEST_MAGIC {
            return Err(Malformed::RequestMagic);
        }
        let command = match u16_at(6) {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            _ => Command::Other,
        };
        Ok(Self {
            command,
            flags: u16_at(4),
            cookie: u64_at(8),
            offset: u64_at(16),
            length: u32_at(24),
        })
    }

    /// Whether it changes nothing: if its client is gone, nobody misses it.
    #[must_use]
    pub const fn only_asks(&self) -> bool {
        matches!(self.command, Command::Read | Command::BlockStatus)
    }

    /// How many bytes follow it.
    ///
    /// # Errors
    ///
    /// When they are more than anybody takes: there is no way around them.
    pub const fn payload(&self) -> Result<u32, Malformed> {
        match self.command {
            Command::Write if self.length > PAYLOAD_BYTES_MAX => {
                Err(Malformed::Payload(self.length))
            }
            Command::Write => Ok(self.length),
            _ => Ok(0),
        }
    }

    /// How many bytes it keeps in memory until it is answered.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        match self.command {
            Command::Read if self.length <= PAYLOAD_BYTES_MAX => self.length,
            Command::Write => self.length,
            _ => 0,
        }
    }

    /// Whether what it writes must be durable when it is answered.
    #[must_use]
    pub const fn is_durable(&self) -> bool {
        self.flags & FLAG_FUA != 0
    }

    /// Whether one extent is enough.
    #[must_use]
    pub const fn wants_one(&self) -> bool {
        self.flags & FLAG_REQ_ONE != 0
    }

    /// Checks that it can be done: within the export, by whoever may, with flags that are known.
    ///
    /// # Errors
    ///
    /// Says what the client is to be told.
    pub const fn check(&self, export: &Described, agreed: Agreed) -> Result<(), Failure> {
        let writes = matches!(
            self.command,
            Command::Write | Command::Trim | Command::WriteZeroes
        );
        let known = match self.command {
            Command::Read => FLAG_DF,
            Command::Write | Command::Trim | Command::Flush => FLAG_FUA,
            Command::WriteZeroes => FLAG_FUA | FLAG_NO_HOLE,
            Command::BlockStatus => FLAG_REQ_ONE,
            Command::Disconnect | Command::Other => 0,
        };
        if writes && export.flags & flags::READ_ONLY != 0 {
            return Err(Failure::Forbidden);
        }
        // FUA is allowed wherever it has been offered, though it only means something for writes.
        if self.flags & !(known | FLAG_FUA) != 0 {
            return Err(Failure::Invalid);
        }
        let end = self.offset.checked_add(self.length as u64);
        let within = matches!(end, Some(end) if end <= export.length);
        match self.command {
            Command::Flush | Command::Disconnect => Ok(()),
            Command::Other => Err(Failure::Invalid),
            Command::BlockStatus if !agreed.allocation => Err(Failure::Invalid),
            _ if !within && writes => Err(Failure::NoSpace),
            _ if !within || self.length == 0 => Err(Failure::Invalid),
            Command::Read if self.length > PAYLOAD_BYTES_MAX => Err(Failure::TooLong),
            _ => Ok(()),
        }
    }

    /// The answer to one that was done and has no data.
    #[must_use]
    pub fn done(&self) -> Vec<u8> {
        simple(0, self.cookie)
    }

    /// The answer to one that failed.
    #[must_use]
    pub fn failed(&self, failure: Failure, agreed: Agreed) -> Vec<u8> {
        let code = failure as u32;
        let needs_structure = matches!(self.command, Command::Read | Command::BlockStatus);
        if !agreed.structured || !needs_structure {
            return simple(code, self.cookie);
        }
        // The number, and a text of no length.
        let data = [&code.to_be_bytes()[..], &[0, 0]].concat();
        let mut out = self.chunk(REPLY_ERROR, data.len());
        out.extend(data);
        out
    }

    /// What goes before the `length` bytes that were read.
    #[must_use]
    pub fn data_head(&self, length: usize, agreed: Agreed) -> Vec<u8> {
        if !agreed.structured {
            return simple(0, self.cookie);
        }
        let mut out = self.chunk(REPLY_OFFSET_DATA, 8 + length);
        out.extend(self.offset.to_be_bytes());
        out
    }

    /// The answer to the question which bytes are in holes; it may end before, but not after, what
    /// was asked.
    #[must_use]
    pub fn status(&self, extents: &[Extent]) -> Vec<u8> {
        let wanted = if self.wants_one() { 1 } else { extents.len() };
        let mut left = self.length;
        let mut data = CONTEXT_ID.to_be_bytes().to_vec();
        for extent in extents.iter().take(wanted) {
            let length = u32::try_from(extent.length).unwrap_or(u32::MAX).min(left);
            if length == 0 {
                break;
            }
            left -= length;
            let state = if extent.is_hole {
                STATE_HOLE | STATE_ZERO
            } else {
                0
            };
            data.extend(length.to_be_bytes());
            data.extend(state.to_be_bytes());
        }
        let mut out = self.chunk(REPLY_BLOCK_STATUS, data.len());
        out.extend(data);
        out
    }

    /// The head of a structured reply that is the only one to this request.
    fn chunk(&self, kind: u16, length: usize) -> Vec<u8> {
        let length = u32::try_from(length).expect("replies are bounded by their requests");
        let mut out = STRUCTURED_MAGIC.to_be_bytes().to_vec();
        out.extend(REPLY_DONE.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(length.to_be_bytes());
        out
    }
}

fn simple(code: u32, cookie: u64) -> Vec<u8> {
    let mut out = SIMPLE_MAGIC.to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Agreed = Agreed {
        structured: true,
        allocation: true,
    };

    fn export(flags: u16) -> Described {
        Described {
            name: String::new(),
            description: String::new(),
            length: 100 << 20,
            flags,
            block_sizes: [1, 4096, PAYLOAD_BYTES_MAX],
        }
    }

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        let bytes = [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &7_u64.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
        ]
        .concat();
        Request::decode(bytes.first_chunk().unwrap()).unwrap()
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let read = request(0, FLAG_DF, 0x0102_0304_0506, 0x0a0b_0c0d);
        assert_eq!((read.command, read.cookie), (Command::Read, 7));
        assert_eq!((read.offset, read.length), (0x0102_0304_0506, 0x0a0b_0c0d));
        assert!(Request::decode(&[0; REQUEST_BYTES]).is_err());
    }

    #[test]
    fn only_what_was_agreed_on_is_done() {
        let check = |it: Request, flags, agreed| it.check(&export(flags), agreed);
        let (ro, rw) = (flags::READ_ONLY, 0);
        assert_eq!(check(request(0, 0, 0, 4096), ro, ALL), Ok(()));
        assert_eq!(
            check(request(1, 0, 0, 4096), ro, ALL),
            Err(Failure::Forbidden)
        );
        assert_eq!(check(request(1, 1, 0, 4096), rw, ALL), Ok(()));
        assert_eq!(
            check(request(1, 1, 100 << 20, 1), rw, ALL),
            Err(Failure::NoSpace)
        );
        assert_eq!(
            check(request(0, 0, u64::MAX, 1), ro, ALL),
            Err(Failure::Invalid)
        );
        assert_eq!(check(request(0, 0, 0, 0), ro, ALL), Err(Failure::Invalid));
        assert_eq!(
            check(request(0, 0, 0, 33 << 20), ro, ALL),
            Err(Failure::TooLong)
        );
        assert_eq!(check(request(0, 64, 0, 1), ro, ALL), Err(Failure::Invalid));
        assert_eq!(check(request(9, 0, 0, 1), rw, ALL), Err(Failure::Invalid));
        assert_eq!(check(request(7, 0, 0, 1), rw, ALL), Ok(()));
        let old = Agreed::default();
        assert_eq!(check(request(7, 0, 0, 1), rw, old), Err(Failure::Invalid));
        assert!(request(1, 0, 0, 33 << 20).payload().is_err());
        assert_eq!(request(0, 0, 0, 33 << 20).payload().unwrap(), 0);
    }

    #[test]
    fn a_status_never_goes_beyond_what_was_asked() {
        let hole = |length, is_hole| Extent { length, is_hole };
        let extents = [hole(4096, false), hole(1 << 40, true), hole(5, false)];
        let answer = request(7, 0, 0, 10_000).status(&extents);
        assert_eq!(answer.len(), 20 + 4 + 2 * 8);
        assert_eq!(
            answer[24..],
            [0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0x17, 0x10, 0, 0, 0, 3]
        );
        assert_eq!(
            request(7, FLAG_REQ_ONE, 0, 10_000).status(&extents).len(),
            20 + 4 + 8
        );
    }

    #[test]
    fn a_read_that_fails_is_told_in_the_form_that_was_agreed_on() {
        let read = request(0, 0, 0, 1);
        assert_eq!(read.failed(Failure::Disk, Agreed::default()).len(), 16);
        assert_eq!(read.failed(Failure::Disk, ALL).len(), 20 + 6);
        assert_eq!(request(1, 0, 0, 1).failed(Failure::Disk, ALL).len(), 16);
    }
}
