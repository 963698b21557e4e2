// Counts by name, in memory: `POST /count/NAME` answers with the number.
const http = require('http');
const counts = new Map();
const server = http.createServer((request, response) => {
  const count = (counts.get(request.url) || 0) + 1;
  counts.set(request.url, count);
  const body = `${count}\n`;
  response.writeHead(200, { 'Content-Length': body.length });
  response.end(body);
});
server.keepAliveTimeout = 0;
server.listen(Number(process.argv[2]), '0.0.0.0');
// Something else that goes on.
setInterval(() => counts.set('ticks', (counts.get('ticks') || 0) + 1), 50);
