// Millstream's topics as a Node program sees them, by KafkaJS.
//
//   node main.mjs produce SERVERS REGISTRY TOPIC SCHEMA COUNT USERS
//   node main.mjs consume SERVERS REGISTRY TOPIC COUNT
//
// produce sends COUNT clicks of USERS users, keyed by user id, in Confluent's wire format.
// consume prints, as JSON, the request ids of the first COUNT committed recommendations.
import { readFileSync } from "node:fs";
import avsc from "avsc";
import kafkajs from "kafkajs";
import lz4 from "lz4js";

const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = kafkajs;
const DEADLINE_MS = 60_000;

// Millstream's producers compress by LZ4, for which KafkaJS wants to be given a codec.
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async (encoder) => Buffer.from(lz4.compress(encoder.buffer)),
  decompress: async (buffer) => Buffer.from(lz4.decompress(buffer)),
});

async function produce(servers, registry, topic, path, count, users) {
  const text = readFileSync(path, "utf8");
  const type = avsc.Type.forSchema(JSON.parse(text), { wrapUnions: false });
  const { id } = await ask(`${registry}/subjects/${topic}-value/versions`, {
    method: "POST",
    headers: { "Content-Type": "application/vnd.schemaregistry.v1+json" },
    body: JSON.stringify({ schema: text }),
  });
  const producer = client(servers).producer({ idempotent: true });
  await producer.connect();
  const now = Date.now();
  const messages = Array.from({ length: count }, (_, i) => {
    const user = `node-user-${i % users}`;
    const datum = type.toBuffer({
      event_id: `node-${i}`,
      user_id: user,
      item_id: `item-${i % 7}`,
      event_type: "CLICK",
      event_time: now,
      profile: [],
    });
    const frame = Buffer.alloc(5);
    frame.writeUInt32BE(id, 1);
    return { key: user, value: Buffer.concat([frame, datum]), timestamp: String(now) };
  });
  // The default partitioner places keys as Kafka's own does.
  await producer.send({ topic, messages, acks: -1 });
  await producer.disconnect();
}

async function consume(servers, registry, topic, count) {
  const consumer = client(servers).consumer({
    groupId: `node-${process.pid}-${Date.now()}`,
    readUncommitted: false,
  });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  const types = new Map();
  const found = [];
  await new Promise((done, failed) => {
    const eachMessage = async ({ message }) => {
      try {
        const id = message.value.readUInt32BE(1);
        if (!types.has(id)) {
          const { schema } = await ask(`${registry}/schemas/ids/${id}`);
          types.set(id, avsc.Type.forSchema(JSON.parse(schema), { wrapUnions: false }));
        }
        const answer = types.get(id).fromBuffer(message.value.subarray(5));
        if (answer.user_id !== message.key.toString()) {
          throw new Error(`key ${message.key} of the answer to ${answer.user_id}`);
        }
        found.push(answer.request_id);
        if (found.length === count) done();
      } catch (error) {
        failed(error);
      }
    };
    consumer.run({ eachMessage }).catch(failed);
  });
  await consumer.disconnect();
  console.log(JSON.stringify(found));
}

function client(servers) {
  return new Kafka({ clientId: "node", brokers: servers.split(","), logLevel: logLevel.ERROR });
}

async function ask(url, options) {
  const answer = await fetch(url, options);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return answer.json();
}

setTimeout(() => {
  console.error(`not done within ${DEADLINE_MS} ms`);
  process.exit(1);
}, DEADLINE_MS).unref();

const [what, servers, registry, topic, ...rest] = process.argv.slice(2);
if (what === "produce") {
  await produce(servers, registry, topic, rest[0], Number(rest[1]), Number(rest[2]));
} else if (what === "consume") {
  await consume(servers, registry, topic, Number(rest[0]));
} else {
  console.error("produce SERVERS REGISTRY TOPIC SCHEMA COUNT USERS | consume SERVERS REGISTRY TOPIC COUNT");
  process.exit(2);
}
