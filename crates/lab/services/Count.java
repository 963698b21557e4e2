import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;

/** Counts by name, in memory: `POST /count/NAME` answers with the number. */
public class Count {
    public static void main(String[] arguments) throws Exception {
        var counts = new ConcurrentHashMap<String, Integer>();
        var server = HttpServer.create(new InetSocketAddress("0.0.0.0", Integer.parseInt(arguments[0])), 128);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/count/", exchange -> {
            exchange.getRequestBody().readAllBytes();
            var body = (counts.merge(exchange.getRequestURI().getPath(), 1, Integer::sum) + "\n").getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
