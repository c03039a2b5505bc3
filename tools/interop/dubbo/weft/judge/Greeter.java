package weft.judge;

import java.util.List;
import java.util.Map;

/** What the judges of Dubbo call each other for. */
public interface Greeter {
    /** Who answers. */
    String who();

    String hello(String name);

    /** The name, and who answers. */
    String greet(String name);

    /** No route takes it. */
    String hidden();

    /** Everything that hessian2 has a form for comes back as it went. */
    Map<String, Object> echo(List<Object> values, Map<String, Object> more);

    /** The value of an attachment of this call. */
    String attachment(String name);

    /** Fails by its own rules. */
    void fail(String text);

    String slow(long milliseconds);
}
