//! Makes a changed catalogue current: the one step that publishing and moving tags share.

use image_format::catalogue::{CATALOGUE_BYTES_MAX, Catalogue};
use image_format::{ImageName, ObjectRef};

use crate::publication::{PublishError, put_target};
use crate::store::Store;
use crate::trust::sign::Signer;
use crate::trust::{Current, Names};

/// A catalogue that readers will take, ready to be written.
#[derive(Debug)]
pub(crate) struct CatalogueChange {
    name: ImageName,
    bytes: Vec<u8>,
}

impl CatalogueChange {
    /// Encodes the catalogue as it shall be.
    ///
    /// # Errors
    /// Readers would refuse it as too long, so it must not become visible.
    pub(crate) fn encode(after: &Catalogue) -> Result<Self, PublishError> {
        let (name, bytes) = (after.name.clone(), after.encode());
        match bytes.len() > CATALOGUE_BYTES_MAX {
            true => Err(PublishError::CatalogueFull { name }),
            false => Ok(Self { name, bytes }),
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
        let catalogue = put_target(store, self.name.to_file_safe(), self.bytes).await?;
        names.names.insert(self.name, catalogue.1);
        let mut set = vec![catalogue];
        set.extend(also);
        signer.advance(store, current, &set).await?;
        Ok(())
    }
}
