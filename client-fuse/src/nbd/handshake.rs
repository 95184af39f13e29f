//! The fixed newstyle handshake: options asked, replies given, until both agree on the export. Pure.
//!
//! There is one export; it is called what the image is called, and is also the one without a name.
//! Asked for and granted may be structured replies and the metadata context `base:allocation`.

use super::transmission::CONTEXT_ID;

/// What a server says first: two magics, and that it knows fixed newstyle and needs no zeros.
pub const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\x00\x03";

/// The bytes of an option before its data.
pub const OPTION_HEAD_BYTES: usize = 16;

/// More data than any option has that is of use: a name of 4096 bytes and some queries.
const OPTION_BYTES_MAX: u32 = 16 << 10;

/// A client needs half a dozen.
const OPTIONS_MAX: usize = 64;

/// The longest name by the specification.
const NAME_BYTES_MAX: usize = 4096;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const CLIENT_FIXED_NEWSTYLE: u32 = 1;
const CLIENT_NO_ZEROES: u32 = 2;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const REP_ERR_INVALID: u32 = 0x8000_0003;
const REP_ERR_UNKNOWN: u32 = 0x8000_0006;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// The one metadata context: which bytes are in holes.
const ALLOCATION: &[u8] = b"base:allocation";

/// Zeros behind the answer to the oldest option, unless the client can do without.
const OLD_ZEROES: usize = 124;

/// What is exported.
#[derive(Clone, Debug)]
pub struct Described {
    /// What it is called, beside "".
    pub name: String,
    /// For people.
    pub description: String,
    /// In bytes.
    pub length: u64,
    /// What can be done with it: see [`super::transmission`].
    pub flags: u16,
    /// The smallest, preferred and longest request.
    pub block_sizes: [u32; 3],
}

/// Why a client is sent away.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum Malformed {
    #[error("it does not speak fixed newstyle NBD")]
    Flags,
    #[error("an option has a wrong magic number")]
    OptionMagic,
    #[error("an option has {0} bytes; {OPTION_BYTES_MAX} are enough for all")]
    OptionLength(u32),
    #[error("it asks for more than {OPTIONS_MAX} options")]
    Options,
    #[error("it wants an export of another name")]
    Name,
    #[error("a request has a wrong magic number")]
    RequestMagic,
    #[error("a request brings {0} bytes, more than was agreed on")]
    Payload(u32),
}

/// What an option is, before its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    option: u32,
    length: u32,
}

impl OptionHead {
    /// Decodes it.
    ///
    /// # Errors
    ///
    /// When it is none, or its data is longer than any.
    pub fn decode(head: &[u8; OPTION_HEAD_BYTES]) -> Result<Self, Malformed> {
        let (magic, rest) = head.split_at(OPTION_MAGIC.len());
        if magic != OPTION_MAGIC {
            return Err(Malformed::OptionMagic);
        }
        let mut rest = Reader(rest);
        let (option, length) = rest.u32().zip(rest.u32()).ok_or(Malformed::OptionMagic)?;
        if length > OPTION_BYTES_MAX {
            return Err(Malformed::OptionLength(length));
        }
        Ok(Self { option, length })
    }

    /// How many bytes of data follow.
    #[must_use]
    pub const fn length(self) -> usize {
        self.length as usize
    }
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Replies have the structured form where they carry data.
    pub structured: bool,
    /// Which bytes are in holes may be asked.
    pub allocation: bool,
}

/// How it goes on after an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// With the next option.
    Haggle,
    /// With requests.
    Transmit(Agreed),
    /// Not at all; the client wants it so.
    End,
}

/// A handshake that goes on.
#[derive(Debug)]
pub struct Handshake<'a> {
    export: &'a Described,
    zeroes: bool,
    structured: bool,
    /// The export for which the context was asked.
    allocation_of: Option<Vec<u8>>,
    n_options: usize,
}

impl<'a> Handshake<'a> {
    /// Begins with a client that said `flags`.
    ///
    /// # Errors
    ///
    /// When it wants what nobody knows, or only what nobody uses any more.
    pub fn begin(export: &'a Described, flags: u32) -> Result<Self, Malformed> {
        if flags & CLIENT_FIXED_NEWSTYLE == 0
            || flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0
        {
            return Err(Malformed::Flags);
        }
        Ok(Self {
            export,
            zeroes: flags & CLIENT_NO_ZEROES == 0,
            structured: false,
            allocation_of: None,
            n_options: 0,
        })
    }

    /// Answers an option: what is to be sent, and how it goes on.
    ///
    /// # Errors
    ///
    /// When the client has to be sent away, because there is no way to say no.
    pub fn answer(&mut self, head: OptionHead, data: &[u8]) -> Result<(Vec<u8>, Turn), Malformed> {
        self.n_options += 1;
        if self.n_options > OPTIONS_MAX {
            return Err(Malformed::Options);
        }
        let mut out = Replies {
            option: head.option,
            bytes: Vec::new(),
        };
        let turn = match head.option {
            1 => return self.export_name(data),
            2 => {
                out.put(REP_ACK, &[]);
                Turn::End
            }
            3 => self.list(data, &mut out),
            6 => self.info(data, &mut out, false),
            7 => self.info(data, &mut out, true),
            8 => self.structured_reply(data, &mut out),
            9 => self.meta_context(data, &mut out, false),
            10 => self.meta_context(data, &mut out, true),
            _ => {
                out.put(REP_ERR_UNSUP, &[]);
                Turn::Haggle
            }
        };
        Ok((out.bytes, turn))
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export.name.as_bytes()
    }

    fn agreed(&self, name: &[u8]) -> Agreed {
        Agreed {
            structured: self.structured,
            allocation: self.allocation_of.as_deref() == Some(name),
        }
    }

    /// The oldest way to choose an export; it knows no other answer than yes.
    fn export_name(&self, name: &[u8]) -> Result<(Vec<u8>, Turn), Malformed> {
        if !self.is_ours(name) {
            return Err(Malformed::Name);
        }
        let mut bytes = self.export.length.to_be_bytes().to_vec();
        bytes.extend(self.export.flags.to_be_bytes());
        if self.zeroes {
            bytes.resize(bytes.len() + OLD_ZEROES, 0);
        }
        Ok((bytes, Turn::Transmit(self.agreed(name))))
    }

    fn list(&self, data: &[u8], out: &mut Replies) -> Turn {
        if data.is_empty() {
            out.put(REP_SERVER, &text(self.export.name.as_bytes()));
            out.put(REP_ACK, &[]);
        } else {
            out.put(REP_ERR_INVALID, b"a list is asked for without data");
        }
        Turn::Haggle
    }

    fn info(&self, data: &[u8], out: &mut Replies, go: bool) -> Turn {
        let Some((name, asked)) = info_request(data) else {
            out.put(REP_ERR_INVALID, b"the data of the option does not add up");
            return Turn::Haggle;
        };
        if !self.is_ours(name) {
            out.put(REP_ERR_UNKNOWN, b"there is no export of that name");
            return Turn::Haggle;
        }
        let export = self.export;
        let mut info = |kind: u16, parts: &[&[u8]]| {
            let bytes = [&kind.to_be_bytes(), &parts.concat()[..]].concat();
            out.put(REP_INFO, &bytes);
        };
        info(
            INFO_EXPORT,
            &[&export.length.to_be_bytes(), &export.flags.to_be_bytes()],
        );
        if asked.contains(&INFO_NAME) {
            info(INFO_NAME, &[export.name.as_bytes()]);
        }
        if asked.contains(&INFO_DESCRIPTION) {
            info(INFO_DESCRIPTION, &[export.description.as_bytes()]);
        }
        if asked.contains(&INFO_BLOCK_SIZE) {
            let sizes = export.block_sizes.map(u32::to_be_bytes);
            info(INFO_BLOCK_SIZE, &[sizes.as_flattened()]);
        }
        out.put(REP_ACK, &[]);
        if go {
            Turn::Transmit(self.agreed(name))
        } else {
            Turn::Haggle
        }
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut Replies) -> Turn {
        if data.is_empty() {
            self.structured = true;
            out.put(REP_ACK, &[]);
        } else {
            out.put(REP_ERR_INVALID, b"the option has no data");
        }
        Turn::Haggle
    }

    /// Lists or chooses metadata contexts.
    fn meta_context(&mut self, data: &[u8], out: &mut Replies, set: bool) -> Turn {
        if set {
            // Whatever was chosen before is not any more, also if this fails.
            self.allocation_of = None;
        }
        let Some((name, queries)) = meta_request(data) else {
            out.put(REP_ERR_INVALID, b"the data of the option does not add up");
            return Turn::Haggle;
        };
        if !self.structured {
            out.put(REP_ERR_INVALID, b"structured replies come first");
            return Turn::Haggle;
        }
        if !self.is_ours(name) {
            out.put(REP_ERR_UNKNOWN, b"there is no export of that name");
            return Turn::Haggle;
        }
        let wanted = queries
            .iter()
            .any(|query| *query == ALLOCATION || (!set && *query == b"base:"));
        if wanted || (!set && queries.is_empty()) {
            let id = if set { CONTEXT_ID } else { 0 };
            out.put(REP_META_CONTEXT, &[&id.to_be_bytes(), ALLOCATION].concat());
            if set {
                self.allocation_of = Some(name.to_vec());
            }
        }
        out.put(REP_ACK, &[]);
        Turn::Haggle
    }
}

/// The replies to one option.
struct Replies {
    option: u32,
    bytes: Vec<u8>,
}

impl Replies {
    fn put(&mut self, kind: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).expect("replies are short");
        self.bytes.extend(REPLY_MAGIC.to_be_bytes());
        self.bytes.extend(self.option.to_be_bytes());
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(data);
    }
}

/// Text with its length before it.
fn text(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("names are short");
    [&length.to_be_bytes(), bytes].concat()
}

/// The name of an export, and what is to be told of it.
fn info_request(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut rest = Reader(data);
    let name = rest.text()?;
    let count = rest.u16()?;
    let asked = (0..count).map(|_| rest.u16()).collect::<Option<_>>()?;
    rest.0.is_empty().then_some((name, asked))
}

/// The name of an export, and queries for metadata contexts.
fn meta_request(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut rest = Reader(data);
    let name = rest.text()?;
    let count = rest.u32()?;
    // Each takes 4 bytes at least, so that what is collected is bounded by the data.
    let queries = (0..count).map(|_| rest.text()).collect::<Option<_>>()?;
    rest.0.is_empty().then_some((name, queries))
}

/// Bytes that are taken from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(*self.take(2)?.first_chunk()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.take(4)?.first_chunk()?))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
            .filter(|text| text.len() <= NAME_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn export() -> Described {
        Described {
            name: "lab/debian:12@1".to_owned(),
            description: "the image".to_owned(),
            length: 1 << 30,
            flags: 1,
            block_sizes: [1, 4096, 32 << 20],
        }
    }

    fn head(option: u32, data: &[u8]) -> OptionHead {
        let length = u32::try_from(data.len()).unwrap();
        let bytes = [
            &OPTION_MAGIC[..],
            &option.to_be_bytes(),
            &length.to_be_bytes(),
        ]
        .concat();
        OptionHead::decode(bytes.first_chunk().unwrap()).unwrap()
    }

    /// The kinds of the replies to an option.
    fn kinds(mut bytes: &[u8]) -> Vec<u32> {
        let mut kinds = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes[..8], REPLY_MAGIC.to_be_bytes());
            let number = |at: usize| u32::from_be_bytes(*bytes[at..].first_chunk().unwrap());
            kinds.push(number(12));
            bytes = &bytes[20 + number(16) as usize..];
        }
        kinds
    }

    fn go(name: &[u8], asked: &[u16]) -> Vec<u8> {
        let count = u16::try_from(asked.len()).unwrap();
        let asked: Vec<u8> = asked.iter().flat_map(|it| it.to_be_bytes()).collect();
        [&text(name)[..], &count.to_be_bytes(), &asked].concat()
    }

    fn meta(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
        let count = u32::try_from(queries.len()).unwrap();
        let queries: Vec<u8> = queries.iter().flat_map(|query| text(query)).collect();
        [&text(name)[..], &count.to_be_bytes(), &queries].concat()
    }

    #[test]
    fn a_client_gets_what_it_asks_for() {
        let export = export();
        let mut handshake = Handshake::begin(&export, 3).unwrap();
        let mut ask = |option, data: &[u8]| handshake.answer(head(option, data), data).unwrap();
        let (bytes, turn) = ask(8, b"");
        assert_eq!((kinds(&bytes), turn), (vec![REP_ACK], Turn::Haggle));
        let (bytes, _) = ask(10, &meta(b"", &[b"base:allocation", b"qemu:dirty"]));
        assert_eq!(kinds(&bytes), [REP_META_CONTEXT, REP_ACK]);
        let (bytes, turn) = ask(6, &go(b"nothing", &[]));
        assert_eq!((kinds(&bytes), turn), (vec![REP_ERR_UNKNOWN], Turn::Haggle));
        let (bytes, turn) = ask(7, &go(b"", &[1, 2, 3, 9]));
        assert_eq!(
            kinds(&bytes),
            [REP_INFO, REP_INFO, REP_INFO, REP_INFO, REP_ACK]
        );
        let agreed = Agreed {
            structured: true,
            allocation: true,
        };
        assert_eq!(turn, Turn::Transmit(agreed));
    }

    #[test]
    fn a_context_is_that_of_the_export_it_was_asked_for() {
        let export = export();
        let mut handshake = Handshake::begin(&export, 1).unwrap();
        let mut ask = |option, data: &[u8]| handshake.answer(head(option, data), data).unwrap();
        let early = meta(b"", &[ALLOCATION]);
        assert_eq!(kinds(&ask(10, &early).0), [REP_ERR_INVALID]);
        ask(8, b"");
        ask(10, &early);
        let (_, turn) = ask(7, &go(b"lab/debian:12@1", &[]));
        let agreed = Agreed {
            structured: true,
            allocation: false,
        };
        assert_eq!(turn, Turn::Transmit(agreed));
    }

    #[test]
    fn the_oldest_way_gets_its_zeroes_unless_it_wants_none() {
        let export = export();
        for (flags, length) in [(1, 8 + 2 + 124), (3, 8 + 2)] {
            let mut handshake = Handshake::begin(&export, flags).unwrap();
            let (bytes, turn) = handshake.answer(head(1, b""), b"").unwrap();
            assert_eq!(bytes.len(), length);
            assert_eq!(turn, Turn::Transmit(Agreed::default()));
            assert!(handshake.answer(head(1, b"x"), b"x").is_err());
        }
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let export = export();
        assert!(Handshake::begin(&export, 0).is_err());
        assert!(Handshake::begin(&export, 5).is_err());
        let mut handshake = Handshake::begin(&export, 3).unwrap();
        let mut ask =
            |option, data: &[u8]| kinds(&handshake.answer(head(option, data), data).unwrap().0);
        assert_eq!(ask(7, b""), [REP_ERR_INVALID]);
        assert_eq!(ask(7, &u32::MAX.to_be_bytes()), [REP_ERR_INVALID]);
        assert_eq!(ask(7, &[go(b"", &[]), vec![0]].concat()), [REP_ERR_INVALID]);
        assert_eq!(ask(9, &[0, 0, 0, 0, 255, 255, 255, 255]), [REP_ERR_INVALID]);
        assert_eq!(ask(3, b"x"), [REP_ERR_INVALID]);
        assert_eq!(ask(5, b""), [REP_ERR_UNSUP]);
        assert_eq!(ask(11, b""), [REP_ERR_UNSUP]);
        let long = [&OPTION_MAGIC[..], &[0, 0, 0, 7], &u32::MAX.to_be_bytes()].concat();
        assert!(OptionHead::decode(long.first_chunk().unwrap()).is_err());
    }

    proptest! {
        /// Any data of any option: an answer or an end, never a panic; what is answered are replies.
        #[test]
        fn any_option_is_answered_or_ends_it(
            options in prop::collection::vec((0..12_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        ) {
            let export = export();
            let mut handshake = Handshake::begin(&export, 3).unwrap();
            for (option, data) in options {
                let Ok((bytes, turn)) = handshake.answer(head(option, &data), &data) else {
                    return Ok(());
                };
                if option != 1 {
                    prop_assert!(!kinds(&bytes).is_empty());
                }
                if turn != Turn::Haggle {
                    return Ok(());
                }
            }
        }
    }

    #[test]
    fn nobody_haggles_for_ever() {
        let export = export();
        let mut handshake = Handshake::begin(&export, 3).unwrap();
        let end = (0..1000).find(|_| handshake.answer(head(3, b""), b"").is_err());
        assert_eq!(end, Some(OPTIONS_MAX));
    }
}
