"""ROS 2's messages without ROS: their types, and one participant of a DDS domain.

cyclonedds (`pip install "visuomotor[ros2]"`). Type names are what ROS 2 makes of its packages, and
topic names begin with "rt". By default only this computer's loopback is used.
"""

# No `from __future__ import annotations`: cyclonedds reads the types of fields as they stand.

import os
import socket
from dataclasses import dataclass

from visuomotor.runtime.arm import ArmError

try:
    from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication
    from cyclonedds.core import (
        DDSException,
        InstanceState,
        Policy,
        Qos,
        ReadCondition,
        SampleState,
        ViewState,
    )
    from cyclonedds.domain import Domain, DomainParticipant
    from cyclonedds.idl import IdlStruct
    from cyclonedds.idl.annotations import final
    from cyclonedds.idl.types import float32, float64, int32, sequence, uint8, uint32
    from cyclonedds.util import duration
except ImportError as error:  # pragma: no cover
    raise ArmError('ROS 2 arms need cyclonedds: pip install "visuomotor[ros2]"') from error


@dataclass
@final
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@dataclass
@final
class Duration(IdlStruct, typename="builtin_interfaces::msg::dds_::Duration_"):
    sec: int32
    nanosec: uint32


@dataclass
@final
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@dataclass
@final
class JointStateMessage(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]  # rad
    velocity: sequence[float64]  # rad/s
    effort: sequence[float64]


@dataclass
@final
class ImageMessage(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32  # bytes a row
    data: sequence[uint8]  # as bytes where it was read

    @classmethod
    def deserialize(
        cls, data: bytes, has_header: bool = True, use_version_2: bool | None = None
    ) -> "ImageMessage":
        """From CDR. As a sequence, pixels would become a list of numbers: 30 times the work."""
        read = _ImageBytes.deserialize(data, has_header, use_version_2)
        return cls(**vars(read))


@dataclass
@final
class _ImageBytes(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    """An ImageMessage, byte for byte. Its own type cannot be told to others on DDS."""

    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: bytes


@dataclass
@final
class MultiArrayDimension(IdlStruct, typename="std_msgs::msg::dds_::MultiArrayDimension_"):
    label: str
    size: uint32
    stride: uint32


@dataclass
@final
class MultiArrayLayout(IdlStruct, typename="std_msgs::msg::dds_::MultiArrayLayout_"):
    dim: sequence[MultiArrayDimension]
    data_offset: uint32


@dataclass
@final
class Float64MultiArray(IdlStruct, typename="std_msgs::msg::dds_::Float64MultiArray_"):
    layout: MultiArrayLayout
    data: sequence[float64]


@dataclass
@final
class JointTrajectoryPoint(IdlStruct, typename="trajectory_msgs::msg::dds_::JointTrajectoryPoint_"):
    positions: sequence[float64]
    velocities: sequence[float64]
    accelerations: sequence[float64]
    effort: sequence[float64]
    time_from_start: Duration


@dataclass
@final
class JointTrajectory(IdlStruct, typename="trajectory_msgs::msg::dds_::JointTrajectory_"):
    header: Header
    joint_names: sequence[str]
    points: sequence[JointTrajectoryPoint]


@dataclass
@final
class KinovaJointVelocity(IdlStruct, typename="kinova_msgs::msg::dds_::JointVelocity_"):
    joint1: float32  # degrees/s
    joint2: float32
    joint3: float32
    joint4: float32
    joint5: float32
    joint6: float32
    joint7: float32


@dataclass
@final
class KinovaFingerPosition(IdlStruct, typename="kinova_msgs::msg::dds_::FingerPosition_"):
    finger1: float32  # turns, 0 open to 6800 closed
    finger2: float32
    finger3: float32


NEWEST = Qos(Policy.Reliability.BestEffort, Policy.Durability.Volatile, Policy.History.KeepLast(1))
# What ROS 2's subscribers ask for by default; a best-effort writer would not match them.
COMMANDS = Qos(
    Policy.Reliability.Reliable(duration(milliseconds=100)),
    Policy.Durability.Volatile,
    Policy.History.KeepLast(1),
)


MOST_WRITERS = 10_000  # of all topics of a domain that are looked at
FIRST_PORT, PORTS = 7400, 250  # DDS's own: the first of domain 0, how many a domain has


def topic_name(ros_name: str) -> str:
    """/joint_states -> rt/joint_states."""
    return "rt/" + ros_name.removeprefix("/")


class Participant:
    """One member of a DDS domain, on one network interface.

    Domains are configured once a process: a second participant of the same domain shares the first
    one's network.
    """

    _domains: dict[int, tuple[str, Domain]] = {}  # noqa: RUF012  (one for the process)

    def __init__(self, domain: int, network: str):
        """Raises ArmError if the network is none of this computer's."""
        known = self._domains.get(domain)
        try:
            if known is None:
                known = (network, Domain(domain, _configuration(network)))
                if network == "lo":
                    _shut_out(domain)
                self._domains[domain] = known
            if known[0] != network:
                raise ArmError(f"domain {domain} already uses network {known[0]}, not {network}")
            self.participant = DomainParticipant(domain)
        except DDSException as error:
            self._domains.pop(domain, None)
            raise ArmError(
                f"network={network}, domain={domain}: DDS cannot be started ({error}); is that an "
                "interface of this computer (ip link)?"
            ) from error

    def other_writers(self, topic: str) -> int:
        """How many writers of a topic this participant has found that are not its own."""
        reader = BuiltinDataReader(self.participant, BuiltinTopicDcpsPublication)
        alive = ReadCondition(reader, ViewState.Any | SampleState.Any | InstanceState.Alive)
        found = reader.read(N=MOST_WRITERS, condition=alive)
        own = self.participant.guid
        return sum(w.topic_name == topic and w.participant_key != own for w in found)


def _configuration(network: str) -> str:
    """Cyclone DDS's XML. Others on loopback are found by multicast, as Fast DDS looks for them by
    default, and one by one, for those that use none."""
    alone = network == "lo"
    discovery = (
        "<Discovery><ParticipantIndex>auto</ParticipantIndex>"
        "<MaxAutoParticipantIndex>64</MaxAutoParticipantIndex>"
        '<Peers><Peer address="127.0.0.1"/></Peers></Discovery>'
    )
    multicast = ' multicast="true"' if alone else ""  # lo does not say that it can
    return (
        '<CycloneDDS><Domain id="any"><General><Interfaces>'
        f'<NetworkInterface name="{network}"{multicast}/></Interfaces>'
        f"<AllowMulticast>{'spdp' if alone else 'default'}</AllowMulticast></General>"
        f"{discovery if alone else ''}</Domain></CycloneDDS>"
    )


def _shut_out(domain: int) -> None:
    """Binds this process's sockets of a domain to loopback. Cyclone DDS listens on every address,
    and would hear whoever reaches this computer. Before Linux 5.7 only root may."""
    first = FIRST_PORT + PORTS * domain
    for name in os.listdir("/proc/self/fd"):
        try:
            held = socket.socket(fileno=int(name))
        except OSError:
            continue  # no socket
        try:
            if held.family == socket.AF_INET and held.type == socket.SOCK_DGRAM:
                address, port = held.getsockname()
                if address == "0.0.0.0" and first <= port < first + PORTS:
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        except PermissionError:
            return
        finally:
            held.detach()
