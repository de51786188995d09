"""What a run's parameters make of its faces: the protocol, the roles, the network and its augmentation.

Every function takes the resolved parameters as attributes, as `fer_keras.params.from_notebook` gives them, and calls
one of the rooms with those that it needs: notebooks and the search build a run in the same way.
"""

from functools import partial
from types import SimpleNamespace

import keras

from fer_keras import augment, ferplus, model
from fer_keras.data import Faces
from fer_keras.roles import assign_roles
from fer_keras.split import effective_protocol

# The parameters that `roles` reads.
OF_ROLES = (
    "protocol",
    "resampling",
    "seed",
    "labels",
    "ferplus_csv",
    "ferplus_mode",
    "auxiliary",
    "auxiliary_alone",
    "subset_per_class",
    "subset_flip",
    "subset_rotation",
    "subset_noise",
)


def protocol(p: SimpleNamespace) -> str:
    """The protocol that the run says it used, see `fer_keras.split.effective_protocol`."""
    return effective_protocol(p.protocol, p.resampling, p.subset_per_class, p.auxiliary)


def roles(p: SimpleNamespace, faces: Faces) -> dict[str, Faces]:
    """The faces of each role, see `fer_keras.roles.assign_roles`."""
    relabel = ferplus.relabeller(p.ferplus_csv, faces, p.ferplus_mode) if p.labels == "ferplus" else None
    subset = None
    if p.subset_per_class:
        changed = {"flip": p.subset_flip, "rotation": p.subset_rotation, "noise": p.subset_noise}
        subset = partial(augment.subset, per_class=p.subset_per_class, random_state=p.seed, **changed)
    return assign_roles(
        faces,
        p.protocol,
        p.resampling,
        p.seed,
        relabel=relabel,
        auxiliary_alone=p.auxiliary_alone,
        subset=subset,
    )


def network(p: SimpleNamespace, faces: Faces) -> keras.Model:
    """A fresh network for faces of this size, these channels and classes, see `fer_keras.model.vggnet`."""
    *size, channels = faces.images.shape[1:]
    return model.vggnet(
        num_classes=len(faces.class_names),
        image_size=tuple(size),
        channels=channels,
        width=p.width,
        dropout=p.dropout,
        l1=p.l1,
        l2=p.l2,
        crop=p.crop,
        head=p.head,
    )


def augmentation(p: SimpleNamespace, image_size: tuple[int, int] = (48, 48)) -> keras.Layer | None:
    """What changes the faces at every step, see `fer_keras.augment.online`; with `crop`, they shift within it."""
    return augment.online(
        flip=p.flip,
        rotation=p.rotation,
        translation=p.translation,
        zoom=p.zoom,
        shift=(min(image_size) - p.crop) // 2 if p.crop else 0,
        image_size=image_size,
        noise=p.noise,
        erasing=p.erasing,
        randaugment=p.randaugment,
    )


def mixing(p: SimpleNamespace) -> keras.Layer | None:
    """What mixes the faces of a batch, see `fer_keras.augment.mixing`."""
    return augment.mixing(p.mixup, p.cutmix)
