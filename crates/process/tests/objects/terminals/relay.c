// object: a relay between pseudo-terminals as script(1) is: cat on an inner one, its echo and its answers seen outside
// status: captured
#include "terminal.h"

int main(void) {
    struct pair outer = open_pair(), inner = open_pair();
    make_raw(outer.slave);
    if (fork() == 0) {
        setsid();
        int tty = open(inner.name, O_RDWR);
        dup2(tty, 0);
        dup2(tty, 1);
        dup2(tty, 2);
        int limit = 64;
        while (--limit > 2) close(limit);
        execl("/bin/cat", "cat", (char *)0);
        _exit(1);
    }
    if (fork() == 0) {
        for (;;) {
            struct pollfd asked[2] = {{outer.slave, POLLIN, 0}, {inner.master, POLLIN, 0}};
            if (poll(asked, 2, -1) < 0) continue;
            char bytes[4096];
            ssize_t got;
            if (asked[0].revents & POLLIN && (got = read(outer.slave, bytes, sizeof bytes)) > 0)
                put(inner.master, bytes, got);
            if (asked[1].revents & POLLIN && (got = read(inner.master, bytes, sizeof bytes)) > 0)
                put(outer.slave, bytes, got);
        }
    }
    ready();
    unsigned round = 0;
    int more;
    do {
        more = go_on();
        char line[64], twice[128];
        int length = snprintf(line, sizeof line, "number %u\n", round++);
        put(outer.master, line, length);
        line[length - 1] = 0;
        expect(outer.master, twice, snprintf(twice, sizeof twice, "%s\r\n%s\r\n", line, line));
    } while (more);
    PASS();
}
