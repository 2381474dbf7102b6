// A client of rlaif.v1.JudgeService that knows nothing but proto/: node client.js HOST:PORT PROTO_FOLDER GOOGLE_FOLDER
// Prints one JSON object. GOOGLE_FOLDER holds google/rpc/*.proto, which describe the details of errors.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protoFolder, googleFolder] = process.argv.slice(2);
const contract = loader.loadSync(
  [path.join("rlaif", "v1", "judge_service.proto"), path.join("google", "rpc", "status.proto"), path.join("google", "rpc", "error_details.proto")],
  { includeDirs: [protoFolder, googleFolder], keepCase: true, longs: String, enums: String, oneofs: true },
);
const { rlaif, google } = grpc.loadPackageDefinition(contract);

const USER = [{ role: "ROLE_USER", content: "How do I bake bread?" }];
const PAIR = { constitution: "constitutions/test", messages: USER, first: "Mix.", second: "No." };

function call(client, method, request, seconds = 10) {
  return new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + seconds * 1000);
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// Every message type loaded above, by its full name, so that an Any can be read.
const types = new Map(
  Object.entries(contract).filter(([, each]) => each.deserialize).map(([name, each]) => [name, each]),
);

function details(error) {
  const [trailer] = error.metadata.get("grpc-status-details-bin");
  const status = types.get("google.rpc.Status").deserialize(trailer);
  return status.details.map((any) => {
    const name = any.type_url.split("/").pop();
    return { type: name, ...types.get(name).deserialize(any.value) };
  });
}

async function refused(client, method, request) {
  try {
    await call(client, method, request);
  } catch (error) {
    return { code: grpc.status[error.code], message: error.details, details: details(error) };
  }
  throw new Error(`${method} was not refused`);
}

async function main() {
  const client = new rlaif.v1.JudgeService(address, grpc.credentials.createInsecure());
  const inline = { principles: [{ principle_id: "kind", text: "Prefer the kind reply." }] };
  const said = {
    compared: (await call(client, "CompareResponses", PAIR)).verdict,
    inline: (await call(client, "CompareResponses", { ...PAIR, constitution: "", inline_constitution: inline })).verdict,
    ranked: await call(client, "RankResponses", {
      constitution: PAIR.constitution, messages: USER, responses: ["No.", "Mix.", "Never."],
    }),
    constitutions: (await call(client, "ListConstitutions", {})).constitutions,
    same_twice: await refused(client, "CompareResponses", { ...PAIR, second: PAIR.first }),
    no_such_constitution: await refused(client, "CompareResponses", { ...PAIR, constitution: "constitutions/none" }),
  };
  client.close();
  process.stdout.write(JSON.stringify(said));
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
