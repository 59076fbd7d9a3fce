"""The whole key schema. Nobody else writes a key's text. The trust domain stands in every key that belongs to one.

/tessera/v1/d/<domain>/names/<name>                           what a name is: "model" or "alias" (claims the name)
/tessera/v1/d/<domain>/models/<model>                         ModelRecord
/tessera/v1/d/<domain>/versions/<model>/<version>             VersionRecord
/tessera/v1/d/<domain>/variants/<model>/<version>/<variant>   VariantRecord
/tessera/v1/d/<domain>/aliases/<alias>                        AliasRecord
/tessera/v1/d/<domain>/sources/<source digest>                "<model>@<version>": registering again is recognised here
/tessera/v1/d/<domain>/profiles/<model>/<version>/<variant>/<profile class>   ProfileRecord
/tessera/v1/d/<domain>/meta-costs/<dialect>/<profile class>   MetaCostRecord
/tessera/v1/d/<domain>/jobs/<job>                             JobRecord
/tessera/v1/d/<domain>/batches/<job>                          BatchRecord
/tessera/v1/d/<domain>/nodes/<node>                           NodeRecord, under the agent's lease
/tessera/v1/d/<domain>/instances/<node>/<instance>            InstanceRecord, under the agent's lease
/tessera/v1/d/<domain>/assignments/<node>/<instance>          AssignmentRecord
/tessera/v1/d/<domain>/loads/<node>/<instance>                LoadRecord
/tessera/v1/services/<kind>/<id>                              ServiceRecord, under that service's lease
/tessera/v1/elections/<name>/<lease>                          leader's address; oldest create-revision leads
"""

from __future__ import annotations

from tessera.domain.ids import Digest, InstanceId, JobId, ModelName, NodeId, ProfileClass, TrustDomain, VariantKey, VersionKey

ROOT = "/tessera/v1/"
DOMAINS = ROOT + "d/"
SERVICES = ROOT + "services/"
SCHEDULER_ELECTION = ROOT + "elections/scheduler/"
BATCH_ELECTION = ROOT + "elections/batch/"


def domain(trust_domain: TrustDomain) -> str:
    return f"{DOMAINS}{trust_domain}/"


def domain_of(key: str) -> TrustDomain:
    """Whose a key below `DOMAINS` is."""
    return TrustDomain(key.removeprefix(DOMAINS).partition("/")[0])


def name(trust_domain: TrustDomain, model_or_alias: ModelName) -> str:
    return f"{domain(trust_domain)}names/{model_or_alias}"


def models(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}models/"


def model(trust_domain: TrustDomain, model_name: ModelName) -> str:
    return models(trust_domain) + model_name


def versions(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}versions/"


def version(key: VersionKey) -> str:
    return f"{versions(key.trust_domain)}{key.model}/{key.version}"


def variants(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}variants/"


def variants_of(key: VersionKey) -> str:
    return f"{variants(key.trust_domain)}{key.model}/{key.version}/"


def variant(key: VariantKey) -> str:
    return variants_of(key.version_key) + key.variant


def aliases(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}aliases/"


def alias(trust_domain: TrustDomain, alias_name: ModelName) -> str:
    return aliases(trust_domain) + alias_name


def source(trust_domain: TrustDomain, source_digest: Digest) -> str:
    return f"{domain(trust_domain)}sources/{source_digest}"


def profiles(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}profiles/"


def profiles_of(key: VersionKey) -> str:
    return f"{profiles(key.trust_domain)}{key.model}/{key.version}/"


def profile(key: VariantKey, profile_class: ProfileClass) -> str:
    return f"{profiles_of(key.version_key)}{key.variant}/{profile_class}"


def meta_costs(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}meta-costs/"


def meta_cost(trust_domain: TrustDomain, dialect: str, profile_class: ProfileClass) -> str:
    return f"{meta_costs(trust_domain)}{dialect}/{profile_class}"


def jobs(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}jobs/"


def job(trust_domain: TrustDomain, job_id: JobId) -> str:
    return jobs(trust_domain) + job_id


def batches(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}batches/"


def batch(trust_domain: TrustDomain, job_id: JobId) -> str:
    return batches(trust_domain) + job_id


def nodes(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}nodes/"


def node(trust_domain: TrustDomain, node_id: NodeId) -> str:
    return nodes(trust_domain) + node_id


def instances(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}instances/"


def instance(trust_domain: TrustDomain, node_id: NodeId, instance_id: InstanceId) -> str:
    return f"{instances(trust_domain)}{node_id}/{instance_id}"


def assignments_of(trust_domain: TrustDomain, node_id: NodeId) -> str:
    return f"{domain(trust_domain)}assignments/{node_id}/"


def assignment(trust_domain: TrustDomain, node_id: NodeId, instance_id: InstanceId) -> str:
    return assignments_of(trust_domain, node_id) + instance_id


def assignments(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}assignments/"


def loads(trust_domain: TrustDomain) -> str:
    return f"{domain(trust_domain)}loads/"


def load(trust_domain: TrustDomain, node_id: NodeId, instance_id: InstanceId) -> str:
    return f"{loads(trust_domain)}{node_id}/{instance_id}"


def service(kind: str, service_id: str) -> str:
    return f"{SERVICES}{kind}/{service_id}"
