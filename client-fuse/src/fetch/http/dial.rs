//! Opens connections before they are needed.
//!
//! Over plain HTTP each question has a connection to itself, and a new one takes a round trip before it can carry any.
//! What is asked for first needs fewer at once than what follows, so those that it lacks are opened beside it, by a
//! question whose answer nobody reads. Over TLS nothing is opened: there one connection carries them all (HTTP/2), and
//! more of them would cost the server handshakes.

use futures_util::future::join_all;
use image_format::marker::MARKER_PATH;
use reqwest::header::AUTHORIZATION;

use super::HttpSource;

impl HttpSource {
    /// Opens `connections` connections, if the store is one of plain HTTP. What comes of that does not matter.
    pub async fn dial(&self, connections: usize) {
        let base = self.base.as_url();
        let (true, Ok(url)) = (base.scheme() == "http", self.base.join(MARKER_PATH)) else {
            return;
        };
        let dial = |_| async {
            let mut request = self.pools.usual().head(url.clone());
            if let Some(token) = &self.authorization {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if let Err(error) = request.send().await {
                tracing::debug!(error = %error.without_url(), "no connection ahead");
            }
        };
        join_all((0..connections).map(dial)).await;
    }
}
