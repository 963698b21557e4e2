// object: a master of a pseudo-terminal in packet mode, told of a flush, a stop and changes of flow control
// status: captured
#include "terminal.h"

static int told(int master) {
    unsigned char byte;
    ssize_t got;
    do got = read(master, &byte, 1);
    while (got < 0 && errno == EINTR);
    CHECK_EQUAL(got, 1);
    return byte;
}

int main(void) {
    struct pair pair = open_pair();
    int on = 1;
    CHECK(!ioctl(pair.master, TIOCPKT, &on));
    set_local(pair.slave, ECHO, 0);
    ready();
    int more;
    do {
        CHECK(!tcflush(pair.slave, TCIFLUSH));
        more = go_on();
        CHECK_EQUAL(told(pair.master), TIOCPKT_FLUSHREAD);
        CHECK(!tcflow(pair.slave, TCOOFF));
        more = go_on() && more;
        CHECK_EQUAL(told(pair.master), TIOCPKT_STOP);
        CHECK(!tcflow(pair.slave, TCOON));
        more = go_on() && more;
        CHECK_EQUAL(told(pair.master), TIOCPKT_START);
        put(pair.slave, "out", 3);
        wait_readable(pair.master);
        more = go_on() && more;
        expect_read(pair.master, "\0out", 4);
        struct termios termios;
        CHECK(!tcgetattr(pair.slave, &termios));
        termios.c_iflag ^= IXON;
        CHECK(!tcsetattr(pair.slave, TCSANOW, &termios));
        more = go_on() && more;
        CHECK_EQUAL(told(pair.master), termios.c_iflag & IXON ? TIOCPKT_DOSTOP : TIOCPKT_NOSTOP);
        expect_nothing(pair.master);
    } while (more);
    PASS();
}
