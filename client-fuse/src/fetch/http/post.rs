//! Sends something to a server: the one request that is no question.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use url::Url;

use super::{HttpSource, reach_error};
use crate::fetch::SourceError;

impl HttpSource {
    /// Sends `body` to `url`. The token is shown only to the server of the store itself.
    ///
    /// # Errors
    ///
    /// Says why it was not taken.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the request up; it may have been taken.
    pub async fn post(&self, url: &Url, body: Vec<u8>) -> Result<(), SourceError> {
        let mut request = self.pools.usual().post(url.clone()).body(body);
        request = request.header(CONTENT_TYPE, "application/octet-stream");
        if let Some(token) = &self.authorization
            && self.base.as_url().origin() == url.origin()
        {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let sent = request.send().await;
        let response = sent.map_err(|error| reach_error(url.as_str(), error))?;
        self.check_refused(url, &response)?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(SourceError::Status {
                url: url.to_string(),
                status: status.as_u16(),
                retry_after: None,
            }),
        }
    }
}
