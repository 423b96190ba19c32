import com.sun.net.httpserver.HttpServer;
import java.io.*;
import java.net.*;
import java.net.http.*;
import java.util.UUID;
import java.util.concurrent.*;

/** A back end for mini program login. JDK 17 or later, without libraries: java Backend.java */
public class Backend {
    record Answer(int status, String json) {}
    static final String WXOPENID = System.getenv().getOrDefault("WXOPENID_URL", "http://127.0.0.1:2020");
    static final HttpClient CLIENT = HttpClient.newBuilder().proxy(HttpClient.Builder.NO_PROXY).build();

    /** Returns the status and the JSON object to answer with. Below 400 the object has the openid. */
    static Answer askWxopenid(String code, HttpHeaders headers) {
        String id = headers.firstValue("X-Request-Id").filter(v -> !v.isEmpty()).orElse(UUID.randomUUID().toString());
        Answer answer;
        try { // for 8 s, between WX_TIMEOUT (5 s) and what openid.js waits (10 s)
            var request = HttpRequest.newBuilder(URI.create(WXOPENID + "/openid")).version(HttpClient.Version.HTTP_1_1)
                .POST(HttpRequest.BodyPublishers.ofString("{\"code\":\"" + code.replace("\"", "") + "\"}"))
                .header("Referer", headers.firstValue("Referer").orElse("")).timeout(java.time.Duration.ofSeconds(8))
                .headers("Content-Type", "application/json", "X-Request-Id", id).build();
            var reply = CLIENT.sendAsync(request, HttpResponse.BodyHandlers.ofString()).get(8, TimeUnit.SECONDS);
            answer = new Answer(reply.statusCode(), reply.body().strip());
            if (!answer.json.matches("(?s)\\{.*}") || answer.status < 400 && string("openid", answer.json).isEmpty())
                throw new IOException("wxopenid answered " + answer.status + " without an openid or an error");
        } catch (Exception e) {
            for (Throwable cause = e; cause != null; cause = cause.getCause()) System.err.println(id + " " + cause);
            answer = new Answer(502, "{\"error\":\"wxopenid_unreachable\"}");
        }
        System.out.println(id + " " + answer.status + " " + (answer.status < 400 ? "ok" : answer.json));
        return answer;
    }

    /** Finds a string, without escapes, in a flat JSON object. Use the JSON parser of your framework instead. */
    static String string(String name, String json) {
        String string = "\"(?:[^\"\\\\]|\\\\.)*+\"";
        String any = "\\s*" + string + "\\s*:\\s*(?:" + string + "|[\\w.+-]++)\\s*";
        String object = "\\{(?:" + any + ",)*?\\s*\"" + name + "\"\\s*:\\s*\"([^\"\\\\]*+)\"\\s*(?:," + any + ")*+}";
        return json.matches(object) ? json.replaceFirst(object, "$1") : "";
    }

    public static void main(String[] args) throws IOException {
        int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "3000"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/", exchange -> {
            String code = string("code", new String(exchange.getRequestBody().readNBytes(4096), "UTF-8").strip());
            exchange.getRequestBody().transferTo(OutputStream.nullOutputStream()); // reads on, but keeps no more
            Answer answer = code.isEmpty() ? new Answer(400, "{\"error\":\"invalid_request\"}")
                : askWxopenid(code, HttpHeaders.of(exchange.getRequestHeaders(), (name, value) -> true));
            String token = "{\"token\":\"" + UUID.randomUUID() + "\"}"; // store in your database whose it is
            byte[] json = (answer.status < 400 ? token : answer.json).getBytes("UTF-8");
            exchange.getResponseHeaders().set("Content-Type", "application/json");
            exchange.sendResponseHeaders(answer.status, json.length);
            try (var out = exchange.getResponseBody()) { out.write(json); }
        });
        server.start();
    }
}
