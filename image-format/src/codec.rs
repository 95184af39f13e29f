//! Little-endian reading and writing over slices, where every length is checked before use.

/// Why some bytes are not what they were taken for. `what` is the thing being decoded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum DecodeError {
    #[error("{what} is longer than {max} bytes")]
    TooLong { what: &'static str, max: u64 },
    #[error("{what} does not begin as a {what} does")]
    Magic { what: &'static str },
    #[error(
        "{what} has format version {version}, and this program knows only version 1: use a newer one"
    )]
    Version { what: &'static str, version: u64 },
    #[error("{what} ends too early")]
    Truncated { what: &'static str },
    #[error("{what} has bytes after its end")]
    Trailing { what: &'static str },
    #[error("{what} is damaged: {reason}")]
    Invalid {
        what: &'static str,
        reason: &'static str,
    },
    #[error("{what} is not the JSON document expected")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
}

impl DecodeError {
    pub(crate) const fn invalid(what: &'static str, reason: &'static str) -> Self {
        Self::Invalid { what, reason }
    }
}

/// Reads fields from the front of a slice.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins to read `bytes`, of which at most `max` are accepted.
    pub(crate) fn new(
        what: &'static str,
        bytes: &'a [u8],
        max: usize,
    ) -> Result<Self, DecodeError> {
        if bytes.len() > max {
            return Err(DecodeError::TooLong {
                what,
                max: max as u64,
            });
        }
        Ok(Self { what, rest: bytes })
    }

    pub(crate) fn magic(&mut self, magic: &[u8; 8]) -> Result<(), DecodeError> {
        if self.array::<8>()? == *magic {
            Ok(())
        } else {
            Err(DecodeError::Magic { what: self.what })
        }
    }

    pub(crate) fn version_1(&mut self) -> Result<(), DecodeError> {
        match self.u16()? {
            1 => Ok(()),
            version => Err(DecodeError::Version {
                what: self.what,
                version: u64::from(version),
            }),
        }
    }

    pub(crate) fn zero_u16(&mut self) -> Result<(), DecodeError> {
        match self.u16()? {
            0 => Ok(()),
            _ => Err(DecodeError::invalid(
                self.what,
                "a reserved field is not zero",
            )),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Says that nothing may follow.
    pub(crate) const fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing { what: self.what })
        }
    }
}

/// Decodes a JSON document of at most `max` bytes.
///
/// # Errors
/// It is longer, or not of this shape.
pub fn json<'a, T: serde::Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
    max: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong {
            what,
            max: max as u64,
        });
    }
    serde_json::from_slice(bytes).map_err(|source| DecodeError::Json { what, source })
}

/// Encodes a JSON document: indented, with a final newline, keys in the order of the fields.
///
/// # Panics
/// If a map in `value` has keys that are no text.
pub fn to_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .expect("our documents have string keys and no failing serializer");
    bytes.push(b'\n');
    bytes
}
