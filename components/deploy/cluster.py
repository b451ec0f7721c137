"""Apply manifests to a Kubernetes cluster. Imports no torch."""

from typing import Any

from components.deploy.manifests import Manifest
from model.data.errors import InputError

_KSERVE = {"group": "serving.kserve.io", "version": "v1beta1", "plural": "inferenceservices"}
_NOT_FOUND = 404


def apply(manifests: list[Manifest], namespace: str) -> None:
    """Create each manifest, or merge it into what is there.

    Raises:
        InputError: no cluster is configured or reachable, or it refuses a manifest.
    """
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config.config_exception import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        # In a pod its service account, else the user's kubeconfig.
        config.load_config()
    except (ConfigException, OSError, TypeError) as error:
        raise InputError(f"deploy.target is cluster, but no cluster is configured: {error}") from None
    custom, network = client.CustomObjectsApi(), client.NetworkingV1Api()
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        try:
            if manifest["kind"] == "NetworkPolicy":
                _apply_policy(network, manifest, namespace)
            else:
                _apply_service(custom, manifest, namespace)
        except ApiException as error:
            raise InputError(f"{name}: the cluster refused it: {error.status} {error.reason}") from None
        except HTTPError as error:
            raise InputError(f"{name}: the cluster cannot be reached: {type(error).__name__}") from None


def _apply_service(api: Any, manifest: Manifest, namespace: str) -> None:
    place = {**_KSERVE, "namespace": namespace}
    name = manifest["metadata"]["name"]
    if _missing(lambda: api.get_namespaced_custom_object(**place, name=name)):
        api.create_namespaced_custom_object(**place, body=manifest)
    else:
        api.patch_namespaced_custom_object(**place, name=name, body=manifest)


def _apply_policy(api: Any, manifest: Manifest, namespace: str) -> None:
    name = manifest["metadata"]["name"]
    if _missing(lambda: api.read_namespaced_network_policy(name, namespace)):
        api.create_namespaced_network_policy(namespace, manifest)
    else:
        api.patch_namespaced_network_policy(name, namespace, manifest)


def _missing(read: Any) -> bool:
    from kubernetes.client.exceptions import ApiException

    try:
        read()
    except ApiException as error:
        if error.status != _NOT_FOUND:
            raise
        return True
    return False
