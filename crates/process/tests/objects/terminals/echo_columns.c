// object: a line that is being typed on a pseudo-terminal after a prompt, with tabs that are erased: the echo knows the columns
// status: captured
#include "terminal.h"

int main(void) {
    struct pair pair = open_pair();
    // With tabs as spaces.
    struct termios termios;
    CHECK(!tcgetattr(pair.slave, &termios));
    termios.c_oflag |= TAB3;
    CHECK(!tcsetattr(pair.slave, TCSANOW, &termios));
    ready();
    int more;
    do {
        put(pair.slave, "prompt> ab", 10);
        expect(pair.master, "prompt> ab", 10);
        put(pair.master, "xy\t", 3);
        expect(pair.master, "xy    ", 6);
        more = go_on();
        // Column 16; the tab began in column 12.
        put(pair.slave, "\tz", 2);
        expect(pair.master, "        z", 9);
        put(pair.slave, "\b", 1);
        expect(pair.master, "\b", 1);
        put(pair.master, "\x7f", 1);
        expect(pair.master, "\b\b\b\b", 4);
        put(pair.master, "\n", 1);
        expect(pair.master, "\r\n", 2);
        expect_read(pair.slave, "xy\n", 3);
    } while (more);
    PASS();
}
