//! Makes a changed catalogue current: the one step that publishing and moving tags share.

use image_format::ObjectRef;
use image_format::catalogue::{CATALOGUE_BYTES_MAX, Catalogue};

use crate::gc::former::wait_anew;
use crate::publication::{PublishError, put_target};
use crate::store::Store;
use crate::trust::sign::Signer;
use crate::trust::{Current, Names};

/// A catalogue that readers will take, ready to be written.
#[derive(Debug)]
pub(crate) struct CatalogueChange<'a> {
    before: &'a Catalogue,
    after: &'a Catalogue,
    bytes: Vec<u8>,
}

impl<'a> CatalogueChange<'a> {
    /// Encodes the catalogue as it shall be.
    ///
    /// # Errors
    /// Readers would refuse it as too long, so it must not become visible.
    pub(crate) fn encode(
        before: &'a Catalogue,
        after: &'a Catalogue,
    ) -> Result<Self, PublishError> {
        let bytes = after.encode();
        match bytes.len() > CATALOGUE_BYTES_MAX {
            true => Err(PublishError::CatalogueFull {
                name: after.name.clone(),
            }),
            false => Ok(Self {
                before,
                after,
                bytes,
            }),
        }
    }

    /// Writes and signs it, with the targets `also`, which are written already; `names` learns of
    /// it. The caller holds the commit lock since it read `current`.
    pub(crate) async fn commit(
        self,
        store: &Store,
        signer: &Signer<'_>,
        current: &Current,
        names: &mut Names,
        also: Vec<(String, ObjectRef)>,
    ) -> Result<(), PublishError> {
        let name = &self.after.name;
        let catalogue = put_target(store, name.to_file_safe(), self.bytes).await?;
        names.names.insert(name.clone(), catalogue.1);
        let mut set = vec![catalogue];
        set.extend(also);
        wait_anew(store, self.before, self.after).await?;
        signer.advance(store, current, &set).await?;
        Ok(())
    }
}
