//! Finds known chunks: searches the chunk indexes of a store without loading them.
//!
//! An index is a file of sorted, fixed-width entries whose keys are spread evenly, so a search
//! guesses the place and reads a window around it: mostly one small read, whatever the size.
//! `IndexBuilder` collects new chunks in bounded memory: what is too much becomes a sorted run in
//! a temporary file, searched in the same way, and merged at the end.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use image_format::chunk_index::{self, ENTRY_BYTES, HEADER_BYTES, Header, IndexEntry};
use image_format::page::Location;
use image_format::{ChunkId, DecodeError, Digest, ObjectRef};

/// Entries read around a guess: more than 99.9 % of searches end in the first window. For n even
/// keys the place is off by about sqrt(n)/2: 500 for a million chunks.
const WINDOW_ENTRIES: usize = 96;

/// New chunks kept in memory before they become a run: 48 bytes each, so some 32 MiB.
const RUN_ENTRIES: usize = 512 * 1024;

/// Why a chunk index cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum IndexError {
    #[error("cannot read chunk index {index}")]
    Read { index: Digest, source: io::Error },
    #[error("chunk index {index} cannot be used")]
    Decode { index: Digest, source: DecodeError },
    #[error("cannot use a temporary file for the chunk index")]
    Temporary { source: io::Error },
}

/// A sorted file of entries, open for searching.
#[derive(Debug)]
struct SortedFile {
    file: File,
    header: Header,
}

impl SortedFile {
    fn open(file: File) -> io::Result<Result<Self, DecodeError>> {
        let length = file.metadata()?.len();
        let mut head = [0; HEADER_BYTES];
        if let Err(error) = file.read_exact_at(&mut head, 0) {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Ok(Err(DecodeError::Truncated {
                    what: "chunk index",
                })),
                _ => Err(error),
            };
        }
        Ok(Header::decode(&head, length).map(|header| Self { file, header }))
    }

    fn packs(&self) -> io::Result<Result<Vec<ObjectRef>, DecodeError>> {
        let length = self.header.entries_offset() - HEADER_BYTES as u64;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, HEADER_BYTES as u64)?;
        Ok(chunk_index::decode_packs(&self.header, &bytes))
    }

    /// Searches by interpolation, then by halving: each step reads one window.
    fn find(&self, chunk: ChunkId) -> io::Result<Option<IndexEntry>> {
        let (mut low, mut high) = (0, self.header.n_entries);
        let mut guess = self.header.guess(chunk);
        let mut window = [0; WINDOW_ENTRIES * ENTRY_BYTES];
        while low < high {
            let from = guess
                .saturating_sub(WINDOW_ENTRIES as u64 / 2)
                .clamp(low, high - 1);
            let count = (WINDOW_ENTRIES as u64).min(high - from);
            let bytes = &mut window[..usize::try_from(count).expect("a window") * ENTRY_BYTES];
            self.file
                .read_exact_at(bytes, self.header.entry_offset(from))?;
            let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
            match entries.binary_search_by_key(&chunk, |entry| IndexEntry::decode(entry).chunk) {
                Ok(at) => return Ok(Some(IndexEntry::decode(&entries[at]))),
                Err(0) => high = from,
                Err(at) if at == entries.len() => low = from + count,
                Err(_) => return Ok(None),
            }
            guess = low + (high - low) / 2;
        }
        Ok(None)
    }

    /// Reads all entries in order.
    fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<IndexEntry>>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(self.header.entries_offset()))?;
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut left = self.header.n_entries;
        Ok(std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let mut bytes = [0; ENTRY_BYTES];
            Some(
                reader
                    .read_exact(&mut bytes)
                    .map(|()| IndexEntry::decode(&bytes)),
            )
        }))
    }
}

/// The chunk indexes of a store, open for searching by several threads.
#[derive(Debug, Default)]
pub struct ChunkIndexes {
    indexes: Vec<(Digest, SortedFile, Vec<ObjectRef>)>,
    excluded: HashSet<Digest>,
}

impl ChunkIndexes {
    /// Adds the index named `digest`, whose bytes were verified, from its file.
    ///
    /// # Errors
    /// It cannot be read, or is no chunk index.
    pub fn add(&mut self, digest: Digest, file: File) -> Result<(), IndexError> {
        let read = |source| IndexError::Read {
            index: digest,
            source,
        };
        let decode = |source| IndexError::Decode {
            index: digest,
            source,
        };
        let sorted = SortedFile::open(file).map_err(read)?.map_err(decode)?;
        let packs = sorted.packs().map_err(read)?.map_err(decode)?;
        self.indexes.push((digest, sorted, packs));
        Ok(())
    }

    /// Forgets the chunks in these packs, which the store lost or is about to delete.
    pub fn exclude(&mut self, packs: impl IntoIterator<Item = Digest>) {
        self.excluded.extend(packs);
    }

    /// Returns the packs whose chunks are forgotten.
    pub const fn excluded(&self) -> &HashSet<Digest> {
        &self.excluded
    }

    /// Tells whether an index leads to one of the packs that are to be forgotten.
    pub fn lead_to_excluded(&self) -> bool {
        let mut packs = self.indexes.iter().flat_map(|(_, _, packs)| packs);
        packs.any(|pack| self.excluded.contains(&pack.digest))
    }

    /// Tells where `chunk` lies, if the store has it.
    ///
    /// # Errors
    /// An index cannot be read, or names an impossible place.
    pub fn find(&self, chunk: ChunkId) -> Result<Option<Location>, IndexError> {
        for (digest, sorted, packs) in &self.indexes {
            let found = sorted.find(chunk).map_err(|source| IndexError::Read {
                index: *digest,
                source,
            })?;
            if let Some(entry) = found {
                let location = entry.location(packs).map_err(|source| IndexError::Decode {
                    index: *digest,
                    source,
                })?;
                if !self.excluded.contains(&location.pack.digest) {
                    return Ok(Some(location));
                }
            }
        }
        Ok(None)
    }

    /// Merges all of them into one index, as a temporary file, without what is excluded.
    ///
    /// # Errors
    /// One cannot be read, or the temporary file cannot be written.
    pub fn merge(&self) -> Result<File, IndexError> {
        let mut packs = Packs::default();
        let mut sources: Vec<Source<'_>> = Vec::new();
        for (digest, sorted, own) in &self.indexes {
            let kept = |pack: &ObjectRef| !self.excluded.contains(&pack.digest);
            let numbers: Vec<Option<u32>> = own
                .iter()
                .map(|pack| kept(pack).then(|| packs.number(*pack)))
                .collect();
            let entries = sorted.entries().map_err(|source| IndexError::Read {
                index: *digest,
                source,
            })?;
            sources.push(Box::new(entries.filter_map(move |entry| match entry {
                Ok(entry) => {
                    let pack = (*numbers.get(entry.pack as usize)?)?;
                    Some(Ok(IndexEntry { pack, ..entry }))
                }
                Err(error) => Some(Err(error)),
            })));
        }
        write_merged(&packs.list, sources).map_err(|source| IndexError::Temporary { source })
    }
}

/// The packs of a merged index, each once.
#[derive(Default)]
struct Packs {
    list: Vec<ObjectRef>,
    numbers: HashMap<Digest, u32>,
}

impl Packs {
    fn number(&mut self, pack: ObjectRef) -> u32 {
        let next = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(pack.digest).or_insert_with(|| {
            self.list.push(pack);
            next
        })
    }
}

type Source<'a> = Box<dyn Iterator<Item = io::Result<IndexEntry>> + 'a>;

/// Merges sorted sources into an index file; of entries for one chunk, one is kept.
fn write_merged(packs: &[ObjectRef], mut sources: Vec<Source<'_>>) -> io::Result<File> {
    let file = tempfile::tempfile()?;
    let mut out = BufWriter::with_capacity(256 * 1024, file);
    let mut header = Header {
        n_packs: u32::try_from(packs.len()).map_err(io::Error::other)?,
        n_entries: 0,
    };
    out.write_all(&header.encode())?;
    for pack in packs {
        out.write_all(&chunk_index::encode_pack(pack))?;
    }
    let mut heads = BinaryHeap::new();
    for (number, source) in sources.iter_mut().enumerate() {
        push_next(number, source, &mut heads)?;
    }
    let mut last = None;
    while let Some(Reverse((chunk, number, pack, offset, length))) = heads.pop() {
        if last != Some(chunk) {
            let entry = IndexEntry {
                chunk,
                pack,
                offset,
                length,
            };
            out.write_all(&entry.encode())?;
            header.n_entries += 1;
            last = Some(chunk);
        }
        push_next(number, &mut sources[number], &mut heads)?;
    }
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.write_all_at(&header.encode(), 0)?;
    file.rewind()?;
    Ok(file)
}

/// The next entry of a source, ordered by chunk, then by source.
type Head = Reverse<(ChunkId, usize, u32, u32, u32)>;

fn push_next(
    number: usize,
    source: &mut Source<'_>,
    heads: &mut BinaryHeap<Head>,
) -> io::Result<()> {
    if let Some(entry) = source.next() {
        let entry = entry?;
        heads.push(Reverse((
            entry.chunk,
            number,
            entry.pack,
            entry.offset,
            entry.length,
        )));
    }
    Ok(())
}

/// Where a new chunk was put: a pack by its number within this publish, and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewPlace {
    pub(crate) pack: u32,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// Collects the new chunks of one publish, in bounded memory.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    recent: HashMap<ChunkId, NewPlace>,
    runs: Vec<SortedFile>,
}

impl IndexBuilder {
    /// Adds a chunk that [`find`](Self::find) did not know.
    pub(crate) fn insert(&mut self, chunk: ChunkId, place: NewPlace) -> Result<(), IndexError> {
        self.recent.insert(chunk, place);
        if self.recent.len() >= RUN_ENTRIES {
            self.spill()
                .map_err(|source| IndexError::Temporary { source })?;
        }
        Ok(())
    }

    /// Tells where this publish put `chunk`.
    pub(crate) fn find(&self, chunk: ChunkId) -> Result<Option<NewPlace>, IndexError> {
        if let Some(place) = self.recent.get(&chunk) {
            return Ok(Some(*place));
        }
        for run in &self.runs {
            let found = run
                .find(chunk)
                .map_err(|source| IndexError::Temporary { source })?;
            if let Some(entry) = found {
                return Ok(Some(NewPlace {
                    pack: entry.pack,
                    offset: entry.offset,
                    length: entry.length,
                }));
            }
        }
        Ok(None)
    }

    fn sorted_recent(&mut self) -> Vec<IndexEntry> {
        let mut entries: Vec<_> = self
            .recent
            .drain()
            .map(|(chunk, place)| IndexEntry {
                chunk,
                pack: place.pack,
                offset: place.offset,
                length: place.length,
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.chunk);
        entries
    }

    fn spill(&mut self) -> io::Result<()> {
        let entries = self.sorted_recent();
        let file = write_merged(&[], vec![Box::new(entries.into_iter().map(Ok))])?;
        self.runs
            .push(SortedFile::open(file)?.map_err(io::Error::other)?);
        Ok(())
    }

    /// Writes the index of all chunks added, given the packs by number; `None` if there are none.
    pub(crate) fn finish(mut self, packs: &[ObjectRef]) -> Result<Option<File>, IndexError> {
        let temporary = |source| IndexError::Temporary { source };
        let recent = self.sorted_recent();
        if recent.is_empty() && self.runs.is_empty() {
            return Ok(None);
        }
        let mut sources: Vec<Source<'_>> = vec![Box::new(recent.into_iter().map(Ok))];
        for run in &self.runs {
            sources.push(Box::new(run.entries().map_err(temporary)?));
        }
        write_merged(packs, sources).map(Some).map_err(temporary)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::hash_set;
    use proptest::prelude::*;

    use super::*;

    fn pack() -> ObjectRef {
        ObjectRef {
            digest: Digest::of(b"pack"),
            length: 1 << 20,
        }
    }

    fn built(keys: impl IntoIterator<Item = u32>, spill_every: usize) -> File {
        let mut builder = IndexBuilder::default();
        for (at, key) in keys.into_iter().enumerate() {
            let place = NewPlace {
                pack: 0,
                offset: 8 + key % 1000,
                length: 1,
            };
            builder
                .insert(ChunkId::of(&key.to_le_bytes()), place)
                .unwrap();
            if at % spill_every == spill_every - 1 {
                builder.spill().unwrap();
            }
        }
        builder.finish(&[pack()]).unwrap().expect("some keys")
    }

    #[test]
    fn chunks_in_excluded_packs_are_forgotten_and_not_merged() {
        let other = ObjectRef {
            digest: Digest::of(b"other"),
            length: 1 << 20,
        };
        let index = |keys: &[u32], packs: &[ObjectRef]| {
            let mut builder = IndexBuilder::default();
            for (at, key) in keys.iter().enumerate() {
                let place = NewPlace {
                    pack: u32::try_from(at % packs.len()).unwrap(),
                    offset: 8 + key,
                    length: 1,
                };
                builder
                    .insert(ChunkId::of(&key.to_le_bytes()), place)
                    .unwrap();
            }
            builder.finish(packs).unwrap().expect("some keys")
        };
        let mut indexes = ChunkIndexes::default();
        indexes
            .add(Digest::of(b"1"), index(&[1, 2, 3, 4], &[pack(), other]))
            .unwrap();
        indexes
            .add(Digest::of(b"2"), index(&[2, 5], &[pack()]))
            .unwrap();
        indexes.exclude([other.digest]);
        assert!(indexes.lead_to_excluded());
        let mut merged = ChunkIndexes::default();
        merged
            .add(Digest::of(b"m"), indexes.merge().unwrap())
            .unwrap();
        merged.exclude([other.digest]);
        assert!(!merged.lead_to_excluded());
        for (key, known) in [(1, true), (2, true), (3, true), (4, false), (5, true)] {
            assert_eq!(find(&indexes, key).is_some(), known, "{key}");
            assert_eq!(find(&merged, key), find(&indexes, key), "{key}");
        }
    }

    fn find(indexes: &ChunkIndexes, key: u32) -> Option<u32> {
        indexes
            .find(ChunkId::of(&key.to_le_bytes()))
            .unwrap()
            .map(|place| place.offset)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// What was put in is found, whether in memory, in runs, or merged; other chunks are not.
        #[test]
        fn finds_what_was_put_in(keys in hash_set(0..100_000_u32, 1..2000), spill in 1..500_usize) {
            let (one, two): (Vec<u32>, Vec<u32>) = keys.iter().partition(|key| **key % 3 == 0);
            let mut indexes = ChunkIndexes::default();
            for (number, part) in [one, two].into_iter().enumerate() {
                if !part.is_empty() {
                    indexes.add(Digest::of(&[u8::from(number == 1)]), built(part, spill)).unwrap();
                }
            }
            let mut merged = ChunkIndexes::default();
            merged.add(Digest::of(b"merged"), indexes.merge().unwrap()).unwrap();
            for key in 0..3000 {
                let expected = keys.contains(&key).then_some(8 + key % 1000);
                prop_assert_eq!(find(&indexes, key), expected);
                prop_assert_eq!(find(&merged, key), expected);
            }
        }
    }

    #[test]
    fn a_file_that_is_no_index_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100]).unwrap();
        let refused = ChunkIndexes::default().add(Digest::of(b""), file);
        assert!(matches!(refused, Err(IndexError::Decode { .. })));
        let short = ChunkIndexes::default().add(Digest::of(b""), tempfile::tempfile().unwrap());
        assert!(matches!(short, Err(IndexError::Decode { .. })));
    }
}
