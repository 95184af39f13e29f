//! The few bytes of the kernel's FUSE protocol that a supervisor must know. Pure.
//!
//! It reads no operation but the first: what a request wants is the worker's business. Numbers have
//! the byte order of the machine. Layout: `linux/fuse.h`.

/// Of a request: length, opcode, unique, node, user, group, process, padding.
const REQUEST_HEAD_BYTES: usize = 40;

/// Of an answer: length, error, unique.
pub const ANSWER_HEAD_BYTES: usize = 16;

/// What a message in either direction takes at most where a supervisor passes it on: names, small
/// answers, listings of a directory. What readers read goes another way.
pub const MESSAGE_BYTES_MAX: usize = 128 << 10;

const FORGET: u32 = 2;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// Asks the kernel to send again what was read and never answered (Linux 6.9).
const NOTIFY_RESEND: i32 = 7;

/// The kernel can do that.
const HAS_RESEND: u64 = 1 << 39;

/// The kernel has more than 32 flags.
const INIT_EXT: u32 = 1 << 30;

/// A node that the kernel never names: whoever is asked to forget it has read a request.
pub const NO_NODE: u64 = 0;

/// What the kernel offered when the mount began: the content of its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Version of the protocol.
    pub major: u32,
    /// The same.
    pub minor: u32,
    /// Most bytes of read-ahead.
    pub max_readahead: u32,
    /// What the kernel can do.
    pub flags: u64,
}

impl Offer {
    /// Bytes of [`Self::encode`].
    pub const BYTES: usize = 20;

    /// Whether the kernel sends again, when asked, what a dead worker had read and not answered.
    #[must_use]
    pub const fn can_resend(&self) -> bool {
        self.flags & HAS_RESEND != 0
    }

    /// The first request of a session, as the kernel would send it.
    #[must_use]
    pub fn request(&self) -> Vec<u8> {
        let [low, high] = halves(self.flags);
        let words = [
            self.major,
            self.minor,
            self.max_readahead,
            low | INIT_EXT,
            high,
        ];
        let mut body = Vec::with_capacity(64);
        for word in words {
            body.extend_from_slice(&word.to_ne_bytes());
        }
        // Eleven words without a meaning yet.
        body.resize(64, 0);
        request(INIT, NO_NODE, &body)
    }

    /// As bytes, for another process.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let [low, high] = halves(self.flags);
        let mut bytes = [0; Self::BYTES];
        let words = [self.major, self.minor, self.max_readahead, low, high];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// What [`Self::encode`] made.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let word = |at: usize| word(bytes, at * 4);
        Some(Self {
            major: word(0)?,
            minor: word(1)?,
            max_readahead: word(2)?,
            flags: u64::from(word(3)?) | u64::from(word(4)?) << 32,
        })
    }
}

/// What is to be known of a request to pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its name; no other request of this mount ever has the same.
    pub unique: u64,
    /// Whether the kernel waits for an answer.
    pub wants_answer: bool,
}

impl Asked {
    /// Reads the head of a request; `None` if it is none.
    #[must_use]
    pub fn of(request: &[u8]) -> Option<Self> {
        let length = word(request, 0)?;
        let opcode = word(request, 4)?;
        let whole = request.len() >= REQUEST_HEAD_BYTES && length as usize == request.len();
        whole.then_some(Self {
            unique: long(request, 8)?,
            wants_answer: !matches!(opcode, FORGET | INTERRUPT | BATCH_FORGET),
        })
    }
}

/// What is to be known of an answer to pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The name of its request.
    pub unique: u64,
    /// 0, or a negative error number.
    pub error: i32,
}

impl Answered {
    /// Reads the head of an answer; `None` if it is none.
    #[must_use]
    pub fn of(answer: &[u8]) -> Option<Self> {
        let length = word(answer, 0)?;
        let whole = answer.len() >= ANSWER_HEAD_BYTES && length as usize == answer.len();
        whole.then_some(Self {
            error: word(answer, 4)?.cast_signed(),
            unique: long(answer, 8)?,
        })
    }
}

/// The head of an answer of `len` bytes of data; `None` if there are more than an answer can have.
#[must_use]
pub fn data_head(unique: u64, len: usize) -> Option<[u8; ANSWER_HEAD_BYTES]> {
    let length = u32::try_from(len.checked_add(ANSWER_HEAD_BYTES)?).ok()?;
    Some(answer_head(length, 0, unique))
}

/// Asks the kernel to send again what was read and never answered.
#[must_use]
pub fn resend() -> [u8; ANSWER_HEAD_BYTES] {
    answer_head(16, NOTIFY_RESEND, 0)
}

/// A request that wants nothing and no answer. It is as long as one of `bytes`, so that whoever reads it has touched the
/// memory for that: a page that is not there when a process is killed while the kernel copies a request to it costs that
/// request its answer.
#[must_use]
pub fn touch(bytes: u32) -> Vec<u8> {
    let mut body = vec![0; REQUEST_HEAD_BYTES + bytes as usize];
    body[..8].copy_from_slice(&1_u64.to_ne_bytes());
    request(FORGET, NO_NODE, &body)
}

/// Ends a thread that reads requests, as the end of a mount does.
#[must_use]
pub fn destroy() -> Vec<u8> {
    request(DESTROY, NO_NODE, &[])
}

fn answer_head(length: u32, error: i32, unique: u64) -> [u8; ANSWER_HEAD_BYTES] {
    let mut head = [0; ANSWER_HEAD_BYTES];
    head[..4].copy_from_slice(&length.to_ne_bytes());
    head[4..8].copy_from_slice(&error.to_ne_bytes());
    head[8..].copy_from_slice(&unique.to_ne_bytes());
    head
}

fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(REQUEST_HEAD_BYTES + body.len()).expect("ours are short");
    let mut bytes = Vec::with_capacity(REQUEST_HEAD_BYTES + body.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&opcode.to_ne_bytes());
    bytes.extend_from_slice(&0_u64.to_ne_bytes());
    bytes.extend_from_slice(&node.to_ne_bytes());
    bytes.resize(REQUEST_HEAD_BYTES, 0);
    bytes.extend_from_slice(body);
    bytes
}

fn halves(flags: u64) -> [u32; 2] {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each half is what is wanted"
    )]
    let halves = [flags as u32, (flags >> 32) as u32];
    halves
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let long = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(long.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_we_make_up_reads_as_what_it_is() {
        let offer = Offer {
            major: 7,
            minor: 45,
            max_readahead: 131_072,
            flags: 0x80_73FF_FFFB,
        };
        assert!(offer.can_resend());
        assert_eq!(offer.request().len(), 104);
        let asked = |bytes: &[u8]| Asked::of(bytes).map(|asked| asked.wants_answer);
        assert_eq!(asked(&offer.request()), Some(true));
        assert_eq!(asked(&destroy()), Some(true));
        assert_eq!(asked(&touch(4096)), Some(false));
        let head = data_head(77, 0).unwrap();
        let answered = Answered::of(&head).unwrap();
        assert_eq!((answered.unique, answered.error), (77, 0));
        assert_eq!(Answered::of(&resend()).unwrap().error, NOTIFY_RESEND);
        assert_eq!(data_head(1, usize::MAX), None);
    }

    proptest! {
        #[test]
        fn an_offer_survives_being_handed_on(major: u32, minor: u32, max_readahead: u32, flags: u64) {
            let offer = Offer { major, minor, max_readahead, flags };
            prop_assert_eq!(Offer::decode(&offer.encode()), Some(offer));
        }

        /// Any bytes are a message of exactly the length that they say, or none; nothing panics.
        #[test]
        fn any_bytes_are_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let length = word(&bytes, 0).map(|length| length as usize);
            if Asked::of(&bytes).is_some() || Answered::of(&bytes).is_some() {
                prop_assert_eq!(length, Some(bytes.len()));
            }
            let _ = Offer::decode(&bytes);
        }
    }
}
