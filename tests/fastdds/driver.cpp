// An arm's driver as a ROS 2 node on Fast DDS (rmw_fastrtps) would be one: publishes
// sensor_msgs/JointState on rt/joint_states, reads std_msgs/Float64MultiArray on the topic that it is
// given, and prints what it reads, a line a message. Messages are written and read as CDR by hand, so
// that no type of our own making stands on both sides.
//
//     driver DOMAIN COMMAND_TOPIC SECONDS QOS STEP
//
// QOS: loopback (no multicast; others are looked for one by one) or default, as Fast DDS comes, on all
// interfaces. STEP: rad, position of the first joint; the second has twice that, and so on.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <fastdds/dds/domain/DomainParticipant.hpp>
#include <fastdds/dds/domain/DomainParticipantFactory.hpp>
#include <fastdds/dds/publisher/DataWriter.hpp>
#include <fastdds/dds/publisher/Publisher.hpp>
#include <fastdds/dds/subscriber/DataReader.hpp>
#include <fastdds/dds/subscriber/SampleInfo.hpp>
#include <fastdds/dds/subscriber/Subscriber.hpp>
#include <fastdds/dds/topic/TopicDataType.hpp>
#include <fastdds/dds/topic/TypeSupport.hpp>
#include <fastdds/rtps/transport/UDPv4TransportDescriptor.h>

using namespace eprosima::fastdds::dds;
namespace rtps = eprosima::fastrtps::rtps;
using Bytes = std::vector<uint8_t>;

// Any type: its bytes behind the CDR header, as they are.
class RawType : public TopicDataType {
 public:
  explicit RawType(const char* name) {
    setName(name);
    m_typeSize = 8192;
    m_isGetKeyDefined = false;
  }
  bool serialize(void* data, rtps::SerializedPayload_t* payload) override {
    const Bytes& bytes = *static_cast<Bytes*>(data);
    const uint8_t header[4] = {0, 1, 0, 0};  // CDR, little endian
    std::memcpy(payload->data, header, 4);
    std::memcpy(payload->data + 4, bytes.data(), bytes.size());
    payload->length = static_cast<uint32_t>(bytes.size() + 4);
    payload->encapsulation = CDR_LE;
    return true;
  }
  bool deserialize(rtps::SerializedPayload_t* payload, void* data) override {
    static_cast<Bytes*>(data)->assign(payload->data + 4, payload->data + payload->length);
    return true;
  }
  std::function<uint32_t()> getSerializedSizeProvider(void* data) override {
    return [data] { return static_cast<uint32_t>(static_cast<Bytes*>(data)->size() + 4); };
  }
  void* createData() override { return new Bytes(); }
  void deleteData(void* data) override { delete static_cast<Bytes*>(data); }
  bool getKey(void*, rtps::InstanceHandle_t*, bool) override { return false; }
};

class Writer {
 public:
  Bytes bytes;
  void align(size_t size) {
    while (bytes.size() % size != 0) bytes.push_back(0);
  }
  template <typename T>
  void put(T value) {
    align(sizeof(T));
    const auto* first = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), first, first + sizeof(T));
  }
  void put(const std::string& text) {
    put<uint32_t>(static_cast<uint32_t>(text.size() + 1));
    bytes.insert(bytes.end(), text.begin(), text.end());
    bytes.push_back(0);
  }
};

template <typename T>
T take(const Bytes& bytes, size_t& at) {
  at = (at + sizeof(T) - 1) / sizeof(T) * sizeof(T);
  T value{};
  if (at + sizeof(T) <= bytes.size()) std::memcpy(&value, bytes.data() + at, sizeof(T));
  at += sizeof(T);
  return value;
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  DomainParticipantQos qos;
  qos.name("driver");
  if (std::strcmp(argv[4], "loopback") == 0) {
    qos.transport().use_builtin_transports = false;
    auto udp = std::make_shared<eprosima::fastdds::rtps::UDPv4TransportDescriptor>();
    udp->interfaceWhiteList.emplace_back("127.0.0.1");
    qos.transport().user_transports.push_back(udp);
    rtps::Locator_t peer;
    peer.kind = LOCATOR_KIND_UDPv4;
    rtps::IPLocator::setIPv4(peer, "127.0.0.1");
    qos.wire_protocol().builtin.initialPeersList.push_back(peer);
  }
  DomainParticipant* member =
      DomainParticipantFactory::get_instance()->create_participant(std::atoi(argv[1]), qos);
  if (member == nullptr) return 1;

  TypeSupport state_type(new RawType("sensor_msgs::msg::dds_::JointState_"));
  TypeSupport command_type(new RawType("std_msgs::msg::dds_::Float64MultiArray_"));
  state_type.register_type(member);
  command_type.register_type(member);
  Topic* states = member->create_topic("rt/joint_states", state_type.get_type_name(), TOPIC_QOS_DEFAULT);
  Topic* commands = member->create_topic(argv[2], command_type.get_type_name(), TOPIC_QOS_DEFAULT);
  DataWriterQos writer_qos = DATAWRITER_QOS_DEFAULT;
  writer_qos.reliability().kind = RELIABLE_RELIABILITY_QOS;
  DataReaderQos reader_qos = DATAREADER_QOS_DEFAULT;
  reader_qos.reliability().kind = RELIABLE_RELIABILITY_QOS;
  DataWriter* writer =
      member->create_publisher(PUBLISHER_QOS_DEFAULT)->create_datawriter(states, writer_qos);
  DataReader* reader =
      member->create_subscriber(SUBSCRIBER_QOS_DEFAULT)->create_datareader(commands, reader_qos);
  if (writer == nullptr || reader == nullptr) return 1;

  std::vector<std::string> names;
  for (int i = 1; i <= 6; ++i) names.push_back("j2n6s300_joint_" + std::to_string(i));
  for (int i = 1; i <= 3; ++i) names.push_back("j2n6s300_joint_finger_" + std::to_string(i));
  const double step = std::atof(argv[5]);
  const int ticks = std::atoi(argv[3]) * 100;
  for (int tick = 0; tick < ticks; ++tick) {
    Writer message;  // header, name, position, velocity, effort
    message.put<int32_t>(tick / 100);
    message.put<uint32_t>(0);
    message.put(std::string("base"));
    message.put<uint32_t>(static_cast<uint32_t>(names.size()));
    for (const auto& name : names) message.put(name);
    for (const double scale : {step, 0.01}) {
      message.put<uint32_t>(static_cast<uint32_t>(names.size()));
      for (size_t i = 0; i < names.size(); ++i) message.put<double>(scale * static_cast<double>(i + 1));
    }
    message.put<uint32_t>(0);
    writer->write(&message.bytes);

    Bytes received;
    SampleInfo info;
    while (reader->take_next_sample(&received, &info) == ReturnCode_t::RETCODE_OK) {
      if (!info.valid_data) continue;
      size_t at = 0;
      const auto dimensions = take<uint32_t>(received, at);
      take<uint32_t>(received, at);  // data_offset
      const auto count = take<uint32_t>(received, at);
      if (dimensions != 0 || count > 64) continue;
      for (uint32_t i = 0; i < count; ++i) std::printf("%.9f ", take<double>(received, at));
      std::printf("\n");
      std::fflush(stdout);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return 0;
}
