// Counts for each websocket: to `+` it answers with the connection's number. Pings all the time.
const { WebSocketServer } = require('ws');
const server = new WebSocketServer({ port: Number(process.argv[2]), host: '0.0.0.0' });
server.on('connection', (socket) => {
  let count = 0;
  socket.on('message', () => socket.send(String(++count)));
  const pings = setInterval(() => socket.ping(), 50);
  socket.on('close', () => clearInterval(pings));
});
