// node adapt.js HOST:PORT TEACHER STUDENT TITLE FILE [QUESTION ANSWER]...
//
// Has a student learn a text, and tells what happens until it is done. Made from the protos alone.
"use strict";

const { randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const definition = loader.loadSync("rookery/v1/adaptation_service.proto", {
  includeDirs: [join(__dirname, "..", "..", "proto")],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
});
const { AdaptationService } = grpc.loadPackageDefinition(definition).rookery.v1;
const LOST = [grpc.status.UNAVAILABLE, grpc.status.CANCELLED];
const PAUSE_MS = 500;
const RETRIES = {
  "grpc.service_config": JSON.stringify({
    methodConfig: [
      {
        name: [{}],
        retryPolicy: {
          maxAttempts: 5,
          initialBackoff: "0.2s",
          maxBackoff: "3s",
          backoffMultiplier: 2.5,
          retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"], // a server that stops cancels what it has not begun
        },
      },
    ],
  }),
};

/** Accepted when it resolves. The request id makes it safe to repeat. */
function create(client, adaptation) {
  const request = { adaptation, request_id: randomUUID() };
  const deadline = new Date(Date.now() + 30_000);
  return new Promise((resolve, reject) => {
    client.createAdaptation(request, { deadline }, (error, made) => (error ? reject(error) : resolve(made)));
  });
}

/** Events after a sequence number, until the adaptation has ended or the server is gone. Resolves to the last event. */
function follow(client, name, after, tell) {
  return new Promise((resolve, reject) => {
    let last;
    const events = client.watchAdaptation({ name, after_sequence: after });
    events.on("data", (event) => tell((last = event)));
    events.on("error", reject);
    events.on("end", () => resolve(last));
  });
}

/** As `follow`, and goes on where it was when the server comes back. Resolves to the adaptation as it ended. */
async function watch(client, name) {
  let after = 0;
  let adaptation;
  const tell = (event) => {
    after = event.sequence;
    adaptation = event.adaptation;
    console.log(event.message);
  };
  for (;;) {
    try {
      await follow(client, name, after, tell);
      return adaptation;
    } catch (error) {
      if (!LOST.includes(error.code)) throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
}

async function main([target, teacher, student, title, file, ...pairs]) {
  const questions = [];
  for (let i = 0; i + 1 < pairs.length; i += 2) questions.push({ question: pairs[i], answer: pairs[i + 1] });
  const client = new AdaptationService(target, grpc.credentials.createInsecure(), RETRIES);
  try {
    const context = { title, passage: readFileSync(file, "utf8"), questions };
    const made = await create(client, { teacher, student, context });
    console.log(made.name);
    const ended = await watch(client, made.name);
    console.log(ended.state, ended.adapter);
    return ended.state === "STATE_SUCCEEDED" ? 0 : 1;
  } finally {
    client.close();
  }
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error) => {
    console.error(`${error.code ?? ""} ${error.details ?? error.message}`.trim());
    process.exit(1);
  },
);
