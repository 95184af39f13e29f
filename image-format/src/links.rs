//! What a document refers to: every object reference in it, also in fields that this program does
//! not know.
//!
//! Whoever deletes must know all references, so this does not go by the fields of one version of
//! a format: whatever has the shape of an object reference is one.

use serde_json::Value;

use crate::codec::DecodeError;
use crate::digest::ObjectRef;

/// Returns the object references in a JSON document.
///
/// # Errors
/// The bytes are not JSON.
pub fn objects_in(document: &[u8]) -> Result<Vec<ObjectRef>, DecodeError> {
    let value = serde_json::from_slice(document)
        .map_err(|_| DecodeError::invalid("document", "it is not JSON"))?;
    let mut found = Vec::new();
    collect(&value, &mut found);
    Ok(found)
}

/// Walks down the document; `serde_json` bounds how deep one can be.
fn collect(value: &Value, found: &mut Vec<ObjectRef>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Object(fields) => {
            found.extend(reference(fields));
            fields.values().for_each(|field| collect(field, found));
        }
        _ => {}
    }
}

fn reference(fields: &serde_json::Map<String, Value>) -> Option<ObjectRef> {
    Some(ObjectRef {
        digest: fields.get("digest")?.as_str()?.parse().ok()?,
        length: fields.get("length")?.as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_in_fields_of_a_later_version_are_found() {
        let (one, two) = (ObjectRef::of(b"one"), ObjectRef::of(b"two"));
        let document = serde_json::json!({
            "format": 1,
            "disk": { "length": 4096, "regions": one, "content": two.digest },
            "new": [{ "head_length": 7, "pack": { "digest": two.digest, "length": two.length, "more": 1 } }],
        });
        let found = objects_in(document.to_string().as_bytes()).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.contains(&one) && found.contains(&two));
        assert!(objects_in(b"{").is_err());
    }
}
