//! Which HTTP proxies are used: what was typed, else what the environment says, as curl reads it.

use std::fmt;
use std::str::FromStr;

use url::Url;

/// The proxies; none at first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For http stores. The proxy sees all of it.
    pub http: Option<ProxyUrl>,
    /// For https stores. The proxy sees their names.
    pub https: Option<ProxyUrl>,
    /// Hosts that are reached without: names with all below them, addresses, networks.
    pub except: String,
}

impl Proxies {
    /// Those that were `typed`, else those of the environment, which is read by `variable`.
    ///
    /// # Errors
    ///
    /// Names the variable that is no address of a proxy.
    pub fn of(
        typed: Option<ProxyUrl>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, VariableError> {
        let first = |names: [&'static str; 2]| {
            let mut set = names.into_iter().filter_map(|name| {
                let value = variable(name).filter(|value| !value.trim().is_empty())?;
                Some((name, value.trim().to_owned()))
            });
            set.next()
        };
        let proxy = |names| {
            let read = |(name, value): (&'static str, String)| {
                value
                    .parse()
                    .map_err(|source| VariableError { name, source })
            };
            first(names).map(read).transpose()
        };
        let except = first(["no_proxy", "NO_PROXY"]).map_or_else(String::new, |(_, value)| value);
        // Said here, because a host that is an address is matched by no `*` further down.
        if except.split(',').any(|host| host.trim() == "*") {
            return Ok(Self::default());
        }
        if typed.is_some() {
            return Ok(Self {
                http: typed.clone(),
                https: typed,
                except,
            });
        }
        let all: Option<ProxyUrl> = proxy(["all_proxy", "ALL_PROXY"])?;
        Ok(Self {
            http: proxy(["http_proxy", "HTTP_PROXY"])?.or_else(|| all.clone()),
            https: proxy(["https_proxy", "HTTPS_PROXY"])?.or(all),
            except,
        })
    }
}

/// The address of a proxy; may have a user and a password, which are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    /// The address, secrets included.
    #[must_use]
    pub const fn as_url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for ProxyUrl {
    type Err = ProxyUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = if text.contains("://") {
            Url::parse(text)
        } else {
            Url::parse(&format!("http://{text}"))
        };
        let url = url?;
        match url.scheme() {
            "http" | "https" => Ok(Self(url)),
            scheme => Err(ProxyUrlError::Scheme(scheme.to_owned())),
        }
    }
}

/// Without user and password.
impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.host_str().unwrap_or("?");
        write!(f, "{}://{host}", self.0.scheme())?;
        self.0.port().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why text is not the address of a proxy. It is not repeated: there may be a password in it.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum ProxyUrlError {
    #[error("not an address like http://proxy:3128")]
    Parse(#[from] url::ParseError),
    #[error("a proxy is reached by http:// or https://, not {0}:")]
    Scheme(String),
}

/// A variable of the environment that says what cannot be done.
#[derive(Debug, thiserror::Error)]
#[error("{name} in the environment is no address of a proxy; unset it, or say --proxy URL")]
pub struct VariableError {
    name: &'static str,
    source: ProxyUrlError,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(typed: Option<&str>, set: &[(&str, &str)]) -> Result<Proxies, VariableError> {
        let variable = |name: &str| {
            let found = set.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Proxies::of(typed.map(|url| url.parse().unwrap()), variable)
    }

    fn shown(proxies: &Proxies) -> [Option<String>; 2] {
        [&proxies.http, &proxies.https].map(|it| it.as_ref().map(ToString::to_string))
    }

    #[test]
    fn the_environment_is_read_as_curl_reads_it() {
        assert_eq!(of(None, &[]).unwrap(), Proxies::default());
        let one = of(None, &[("http_proxy", "p:3128"), ("HTTP_PROXY", "q")]).unwrap();
        assert_eq!(shown(&one), [Some("http://p:3128".to_owned()), None]);
        let all = of(
            None,
            &[
                ("ALL_PROXY", "http://a:1/"),
                ("https_proxy", "https://s"),
                ("http_proxy", " "),
            ],
        );
        let all = all.unwrap();
        let wanted = ["http://a:1", "https://s"].map(|url| Some(url.to_owned()));
        assert_eq!(shown(&all), wanted);
        assert_eq!(all.except, "");
    }

    #[test]
    fn what_is_typed_counts_for_all_but_the_exceptions() {
        let set = [
            ("http_proxy", "socks5://p"),
            ("no_proxy", "a.example,10.0.0.0/8"),
        ];
        let typed = of(Some("http://t:8"), &set).unwrap();
        assert_eq!(shown(&typed), [0, 1].map(|_| Some("http://t:8".to_owned())));
        assert_eq!(typed.except, "a.example,10.0.0.0/8");
        let error = of(None, &set).unwrap_err();
        assert!(error.to_string().contains("http_proxy"), "{error}");
        let none = of(Some("http://t:8"), &[("NO_PROXY", "a.example, *")]).unwrap();
        assert_eq!(none, Proxies::default());
    }

    #[test]
    fn no_password_is_shown() {
        let proxies = of(Some("http://me:SECRET@p:3128"), &[]).unwrap();
        let told = format!("{proxies:?} {:?}", shown(&proxies));
        assert!(
            !told.contains("SECRET") && told.contains("p:3128"),
            "{told}"
        );
        let error = of(None, &[("all_proxy", "ftp://me:SECRET@p")]).unwrap_err();
        let debug = format!("{error:?}");
        let told = format!("{debug} {:#}", anyhow::Error::from(error));
        assert!(!told.contains("SECRET"), "{told}");
    }
}
