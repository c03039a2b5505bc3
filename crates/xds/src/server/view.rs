//! Views: named, immutable sets of resources, encoded once for all streams.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use weft_protos::envoy::config::cluster::v3::Cluster;
use weft_protos::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use weft_protos::type_url;

/// A resource as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub type_url: String,
    pub name: String,
    /// Equal versions of a name mean equal contents to the clients.
    pub version: String,
    /// The serialised message.
    pub body: Bytes,
}

/// A resource in the form in which it is sent.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) name: Arc<str>,
    pub(crate) version: Arc<str>,
    /// The `resources` field of a DeltaDiscoveryResponse.
    delta: Bytes,
    /// Where in `delta` the Any begins. Its field number in `Resource` is the one of `resources` in a
    /// DiscoveryResponse (2), so the same bytes serve the state of the world.
    any: usize,
    /// Where in `delta` the serialised message begins; it reaches to the end.
    body: usize,
    /// Of a cluster with EDS: the name under which its endpoints are asked for.
    pub(crate) endpoints: Option<Arc<str>>,
}

/// Field numbers of `envoy.service.discovery.v3` (discovery.proto).
mod field {
    pub(super) const RESOURCES: u32 = 2;
    pub(super) const RESOURCE_VERSION: u32 = 1;
    pub(super) const RESOURCE_BODY: u32 = 2;
    pub(super) const RESOURCE_NAME: u32 = 3;
    pub(super) const RESOURCE_ALIASES: u32 = 4;
    pub(super) const ANY_TYPE_URL: u32 = 1;
    pub(super) const ANY_VALUE: u32 = 2;
}

impl Resource {
    pub(crate) fn new(published: &Published) -> Self {
        let Published { type_url, name, version, body } = published;
        let any_bytes = bytes_len(field::ANY_TYPE_URL, type_url.len()) + bytes_len(field::ANY_VALUE, body.len());
        let named_bytes =
            bytes_len(field::RESOURCE_VERSION, version.len()) + bytes_len(field::RESOURCE_NAME, name.len());
        let resource_bytes = named_bytes + bytes_len(field::RESOURCE_BODY, any_bytes);
        let mut delta = BytesMut::with_capacity(bytes_len(field::RESOURCES, resource_bytes));
        put_head(&mut delta, field::RESOURCES, resource_bytes);
        put_bytes(&mut delta, field::RESOURCE_VERSION, version.as_bytes());
        put_bytes(&mut delta, field::RESOURCE_NAME, name.as_bytes());
        let any = delta.len();
        put_head(&mut delta, field::RESOURCE_BODY, any_bytes);
        put_bytes(&mut delta, field::ANY_TYPE_URL, type_url.as_bytes());
        put_bytes(&mut delta, field::ANY_VALUE, body);
        Self {
            name: name.as_str().into(),
            version: version.as_str().into(),
            body: delta.len() - body.len(),
            delta: delta.freeze(),
            any,
            endpoints: if type_url == type_url::CLUSTER { endpoints_of(name, body) } else { None },
        }
    }

    /// The place of a resource that does not exist, in a response of the delta protocol.
    pub(crate) fn unpopulated(name: &str) -> Bytes {
        let named_bytes = bytes_len(field::RESOURCE_NAME, name.len()) + bytes_len(field::RESOURCE_ALIASES, name.len());
        let mut delta = BytesMut::with_capacity(bytes_len(field::RESOURCES, named_bytes));
        put_head(&mut delta, field::RESOURCES, named_bytes);
        put_bytes(&mut delta, field::RESOURCE_NAME, name.as_bytes());
        // Envoy takes no body from those that have an alias only.
        put_bytes(&mut delta, field::RESOURCE_ALIASES, name.as_bytes());
        delta.freeze()
    }

    pub(crate) fn as_delta(&self) -> Bytes {
        self.delta.clone()
    }

    pub(crate) fn as_state_of_the_world(&self) -> Bytes {
        self.delta.slice(self.any..)
    }
}

/// The EDS name of a cluster: its `service_name`, or its own (cluster.proto, EdsClusterConfig).
fn endpoints_of(name: &str, body: &[u8]) -> Option<Arc<str>> {
    // A cluster that does not decode is the client's to refuse; nothing is known of its endpoints.
    let cluster = Cluster::decode(body).ok()?;
    let is_eds = matches!(cluster.cluster_discovery_type, Some(ClusterDiscoveryType::Type(it)) if it == DiscoveryType::Eds as i32);
    let service_name = cluster.eds_cluster_config.map(|it| it.service_name).filter(|it| !it.is_empty());
    is_eds.then(|| service_name.as_deref().unwrap_or(name).into())
}

pub(crate) fn bytes_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn put_head(buffer: &mut BytesMut, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

pub(crate) fn put_bytes(buffer: &mut BytesMut, tag: u32, value: &[u8]) {
    put_head(buffer, tag, value.len());
    buffer.put_slice(value);
}

/// All resources of one type in one view.
#[derive(Debug)]
pub(crate) struct TypeSet {
    pub(crate) items: BTreeMap<Arc<str>, Arc<Resource>>,
    /// Identifies this set among all sets of the process.
    pub(crate) generation: u64,
    /// The set that stood here before, and the names that differ from it: a stream that had everything of that one
    /// looks at these names only. A view of ten thousand resources would else be searched by every stream.
    pub(crate) parent: Option<u64>,
    pub(crate) changed: Vec<Arc<str>>,
}

/// Everything that a stream attached to this view may see.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) name: Arc<str>,
    pub(crate) revision: u64,
    pub(crate) types: BTreeMap<String, Arc<TypeSet>>,
}

/// Makes views, and lets equal resources of different views and revisions be one in memory.
#[derive(Debug, Default)]
pub(crate) struct Views {
    current: HashMap<Arc<str>, Arc<View>>,
    pool: HashMap<(String, String, String), Weak<Resource>>,
    /// The pool is swept when it has grown to this.
    sweep_at: usize,
}

impl Views {
    /// Replace the content of the view `name`.
    pub(crate) fn publish(&mut self, name: &str, revision: u64, resources: Vec<Published>) -> Arc<View> {
        let mut fresh: BTreeMap<String, BTreeMap<Arc<str>, Arc<Resource>>> = BTreeMap::new();
        for published in resources {
            let resource = self.intern(&published);
            fresh.entry(published.type_url).or_default().insert(resource.name.clone(), resource);
        }
        let previous = self.current.get(name).cloned();
        if let Some(previous) = &previous {
            // A type that is gone altogether is an empty set, so that its removals are seen.
            for type_url in previous.types.keys() {
                fresh.entry(type_url.clone()).or_default();
            }
        }
        let types = fresh.into_iter().map(|(type_url, items)| {
            let before = previous.as_ref().and_then(|it| it.types.get(&type_url));
            (type_url, TypeSet::after(before, items))
        });
        let name: Arc<str> = previous.as_ref().map_or_else(|| name.into(), |it| it.name.clone());
        let view = Arc::new(View { name: name.clone(), revision, types: types.collect() });
        self.current.insert(name, view.clone());
        view
    }

    pub(crate) fn withdraw(&mut self, name: &str) {
        self.current.remove(name);
    }

    fn intern(&mut self, published: &Published) -> Arc<Resource> {
        let key = (published.type_url.clone(), published.name.clone(), published.version.clone());
        let known = self.pool.get(&key).and_then(Weak::upgrade);
        // The version is the caller's word; sharing goes by the bytes.
        if let Some(known) = known.filter(|known| known.delta[known.body..] == published.body) {
            return known;
        }
        let resource = Arc::new(Resource::new(published));
        if self.pool.len() >= self.sweep_at {
            self.pool.retain(|_, resource| resource.strong_count() > 0);
            self.sweep_at = 2 * self.pool.len() + 1024;
        }
        self.pool.insert(key, Arc::downgrade(&resource));
        resource
    }
}

impl TypeSet {
    /// The set with `items`: `before` itself if nothing differs.
    fn after(before: Option<&Arc<TypeSet>>, items: BTreeMap<Arc<str>, Arc<Resource>>) -> Arc<TypeSet> {
        static GENERATIONS: AtomicU64 = AtomicU64::new(1);
        let mut changed = Vec::new();
        let mut parent = None;
        if let Some(before) = before {
            parent = Some(before.generation);
            let same = |a: &Resource, b: &Resource| a.version == b.version;
            let upserted =
                items.iter().filter(|(name, item)| !before.items.get(*name).is_some_and(|old| same(old, item)));
            changed.extend(upserted.map(|(name, _)| name.clone()));
            changed.extend(before.items.keys().filter(|name| !items.contains_key(*name)).cloned());
            if changed.is_empty() {
                return before.clone();
            }
        }
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        Arc::new(TypeSet { items, generation, parent, changed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_protos::envoy::config::cluster::v3::cluster::EdsClusterConfig;
    use weft_protos::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};

    fn published(name: &str, version: &str, body: &'static [u8]) -> Published {
        Published {
            type_url: type_url::SECRET.into(),
            name: name.into(),
            version: version.into(),
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn one_encoding_serves_both_variants() {
        for body in [&b""[..], b"x", &[7; 70_000]] {
            let mut from = published("name", "version", b"");
            from.body = Bytes::copy_from_slice(body);
            let resource = Resource::new(&from);
            let delta = DeltaDiscoveryResponse::decode(resource.as_delta()).unwrap();
            let [got] = &delta.resources[..] else { panic!("{delta:?}") };
            assert_eq!((got.name.as_str(), got.version.as_str()), ("name", "version"));
            let any = got.resource.as_ref().unwrap();
            assert_eq!((any.type_url.as_str(), &any.value[..]), (type_url::SECRET, body));
            let world = DiscoveryResponse::decode(resource.as_state_of_the_world()).unwrap();
            assert_eq!(world.resources, std::slice::from_ref(any));
        }
    }

    #[test]
    fn equal_contents_are_the_same_set() {
        let mut views = Views::default();
        let a = views.publish("a", 1, vec![published("x", "1", b"x"), published("y", "1", b"y")]);
        let b = views.publish("b", 1, vec![published("x", "1", b"x")]);
        let set = |view: &View| view.types[type_url::SECRET].clone();
        assert!(Arc::ptr_eq(&set(&a).items["x"], &set(&b).items["x"]));
        let again = views.publish("a", 2, vec![published("y", "1", b"y"), published("x", "1", b"x")]);
        assert!(Arc::ptr_eq(&set(&a), &set(&again)));
        let changed = views.publish("a", 3, vec![published("x", "2", b"z"), published("new", "1", b"")]);
        assert_eq!(set(&changed).parent, Some(set(&a).generation));
        assert_eq!(set(&changed).changed, ["new".into(), "x".into(), "y".into()] as [Arc<str>; 3]);
        let empty = views.publish("a", 4, vec![]);
        assert!(set(&empty).items.is_empty());
    }

    #[test]
    fn a_version_given_twice_does_not_mix_contents() {
        let mut views = Views::default();
        let a = views.publish("a", 1, vec![published("x", "1", b"one")]);
        let b = views.publish("b", 1, vec![published("x", "1", b"someone")]);
        let encoded = |view: &View| view.types[type_url::SECRET].items["x"].as_delta();
        assert_ne!(encoded(&a), encoded(&b));
    }

    #[test]
    fn the_pool_forgets_what_nobody_publishes() {
        let mut views = Views::default();
        for version in 0..20_000 {
            views.publish("a", version, vec![published("x", &version.to_string(), b"x")]);
        }
        assert!(views.pool.len() < 3000, "{}", views.pool.len());
    }

    #[test]
    fn clusters_tell_where_their_endpoints_are() {
        let mut cluster = Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
            ..Default::default()
        };
        let endpoints = |cluster: &Cluster| endpoints_of("c", &cluster.encode_to_vec());
        assert_eq!(endpoints(&cluster).as_deref(), Some("c"));
        cluster.eds_cluster_config = Some(EdsClusterConfig { service_name: "s".into(), ..Default::default() });
        assert_eq!(endpoints(&cluster).as_deref(), Some("s"));
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
        assert_eq!(endpoints(&cluster), None);
        assert_eq!(endpoints_of("c", b"\xff\xff\xff"), None);
    }
}
