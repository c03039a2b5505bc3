package weft.judge;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.Serializable;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Date;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcContext;

/**
 * Dubbo's own provider and consumer, to put a proxy between.
 *
 * <pre>
 * provider PORT NAME [GROUP]          says "ready", and answers as NAME until its standard input ends
 * consumer PORT TIMEOUT [GROUP]       carries out the lines of its standard input, one answer each:
 *     METHOD [ARGUMENT [KEY=VALUE]]   "ok TEXT" or "failed CLASS TEXT"; KEY=VALUE is an attachment
 *     many COUNT                      so many calls of `hello` at once, whose answers are compared
 *     typed                           a call with values of every kind, whose answer is compared
 * </pre>
 */
public final class Judge {
    private Judge() {}

    /** A class of the application's own. */
    public static final class Person implements Serializable {
        private static final long serialVersionUID = 1;
        public String name;
        public int age;
        public Person friend;

        public Person() {}

        Person(String name, int age, Person friend) {
            this.name = name;
            this.age = age;
            this.friend = friend;
        }

        @Override
        public boolean equals(Object other) {
            return other instanceof Person && toString().equals(other.toString());
        }

        @Override
        public int hashCode() {
            return toString().hashCode();
        }

        @Override
        public String toString() {
            return name + "," + age + (friend == this ? ",self" : "");
        }
    }

    private static final class Provider implements Greeter {
        private final String name;

        Provider(String name) {
            this.name = name;
        }

        @Override
        public String who() {
            return name;
        }

        @Override
        public String hello(String name) {
            return "hello " + name;
        }

        @Override
        public String greet(String name) {
            return name + " from " + this.name;
        }

        @Override
        public String hidden() {
            return "seen";
        }

        @Override
        public Map<String, Object> echo(List<Object> values, Map<String, Object> more) {
            Map<String, Object> both = new LinkedHashMap<>(more);
            both.put("values", values);
            return both;
        }

        @Override
        public String attachment(String name) {
            return RpcContext.getServerAttachment().getAttachment(name);
        }

        @Override
        public void fail(String text) {
            throw new IllegalStateException(text);
        }

        @Override
        public String slow(long milliseconds) {
            try {
                Thread.sleep(milliseconds);
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
            }
            return "slept";
        }
    }

    public static void main(String[] arguments) throws Exception {
        System.setProperty("dubbo.application.qos-enable", "false");
        // Who may send which class is not what is judged here.
        System.setProperty("dubbo.application.serialize-check-status", "DISABLE");
        if (arguments[0].equals("provider")) {
            provide(Integer.parseInt(arguments[1]), arguments[2], arguments.length > 3 ? arguments[3] : null);
        } else {
            consume(arguments[1], Integer.parseInt(arguments[2]), arguments.length > 3 ? arguments[3] : null);
        }
        // Dubbo's threads are no daemons.
        System.exit(0);
    }

    private static void provide(int port, String name, String group) throws Exception {
        ServiceConfig<Greeter> service = new ServiceConfig<>();
        service.setInterface(Greeter.class);
        service.setRef(new Provider(name));
        service.setGroup(group);
        ProtocolConfig protocol = new ProtocolConfig("dubbo", port);
        protocol.setHost("127.0.0.1");
        protocol.setSerialization("hessian2");
        DubboBootstrap.getInstance()
                .application(new ApplicationConfig("provider"))
                .registry(new RegistryConfig("N/A"))
                .protocol(protocol)
                .service(service)
                .start();
        System.out.println("ready");
        while (System.in.read() >= 0) {
            // Until whoever started this is gone.
        }
    }

    private static void consume(String port, int timeout, String group) throws Exception {
        ReferenceConfig<Greeter> reference = new ReferenceConfig<>();
        reference.setInterface(Greeter.class);
        reference.setUrl("dubbo://127.0.0.1:" + port + "/" + Greeter.class.getName() + "?serialization=hessian2");
        reference.setTimeout(timeout);
        reference.setRetries(0);
        reference.setCheck(false);
        reference.setGroup(group);
        DubboBootstrap.getInstance()
                .application(new ApplicationConfig("consumer"))
                .registry(new RegistryConfig("N/A"))
                .reference(reference)
                .start();
        Greeter greeter = reference.get();
        System.out.println("ready");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String answer;
            try {
                answer = "ok " + carryOut(greeter, line.split(" "));
            } catch (Exception failed) {
                Throwable cause = failed;
                while (cause.getCause() != null) {
                    cause = cause.getCause();
                }
                answer = "failed " + failed.getClass().getSimpleName() + " " + cause.getMessage();
            }
            System.out.println(answer.replace('\n', ' ').replace('\r', ' '));
        }
    }

    private static String carryOut(Greeter greeter, String[] words) throws Exception {
        String argument = words.length > 1 ? words[1] : "";
        if (words.length > 2) {
            String[] pair = words[2].split("=", 2);
            RpcContext.getClientAttachment().setAttachment(pair[0], pair[1]);
        }
        switch (words[0]) {
            case "who":
                return greeter.who();
            case "hello":
                return greeter.hello(argument);
            case "greet":
                return greeter.greet(argument);
            case "hidden":
                return greeter.hidden();
            case "attachment":
                return String.valueOf(greeter.attachment(argument));
            case "fail":
                greeter.fail(argument);
                return "nothing";
            case "slow":
                return greeter.slow(Long.parseLong(argument));
            case "large":
                String name = text(Integer.parseInt(argument));
                return String.valueOf(greeter.hello(name).equals("hello " + name));
            case "many":
                return many(greeter, Integer.parseInt(argument));
            case "typed":
                return typed(greeter);
            default:
                throw new IllegalArgumentException(words[0]);
        }
    }

    private static String text(int length) {
        char[] letters = new char[length];
        Arrays.fill(letters, 'ä');
        return new String(letters);
    }

    private static String many(Greeter greeter, int count) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(count);
        CountDownLatch begin = new CountDownLatch(1);
        List<Future<String>> answers = new ArrayList<>();
        for (int index = 0; index < count; index++) {
            String name = "n" + index;
            answers.add(threads.submit(() -> {
                begin.await();
                return greeter.hello(name);
            }));
        }
        begin.countDown();
        for (int index = 0; index < count; index++) {
            String answer = answers.get(index).get();
            if (!answer.equals("hello n" + index)) {
                throw new IllegalStateException("call " + index + " was answered: " + answer);
            }
        }
        threads.shutdown();
        return String.valueOf(count);
    }

    private static String typed(Greeter greeter) {
        Person person = new Person("ann", 41, null);
        person.friend = person;
        List<Object> values = new ArrayList<>();
        for (long number : new long[] {0, -1, 47, -2048, 262143, -262144, 1L << 30, 1L << 40, Long.MIN_VALUE}) {
            values.add(number);
            values.add((int) number);
        }
        values.addAll(Arrays.asList(0.0, 1.0, -1.0, 128.0, 1.5, 0.001, Math.PI, Double.MAX_VALUE));
        values.addAll(Arrays.asList(true, false, null, new Date(1700000000000L), new Date(60000L * 28333333)));
        values.addAll(Arrays.asList("", "a", text(31), text(32), text(1023), text(1024), text(70000), "\uD83D\uDE00"));
        values.addAll(Arrays.asList(person, new Person("bob", 7, person), person));
        values.add(new ArrayList<>(Collections.nCopies(3, "x")));
        values.add(new ArrayList<>(Collections.nCopies(300, 5)));
        Map<String, Object> more = new HashMap<>();
        more.put("map", new HashMap<>(Collections.singletonMap("k", Collections.singletonMap(1, 2L))));
        more.put("list", Arrays.asList(1, 2L, "three", null));
        Map<String, Object> answer = greeter.echo(values, more);
        Map<String, Object> expected = new HashMap<>(more);
        expected.put("values", values);
        if (!expected.equals(answer)) {
            throw new IllegalStateException("came back as " + answer);
        }
        return "same";
    }
}
