// object: settings of a pseudo-terminal: its modes, characters, speed and window, owner and mode of its node, exclusive use
// status: captured
#include "terminal.h"

int main(void) {
    struct pair pair = open_pair();
    struct termios termios;
    CHECK(!chown(pair.name, 12, 34) && !chmod(pair.name, 0604));
    CHECK(!ioctl(pair.slave, TIOCEXCL));
    ready();
    unsigned round = 0;
    int more;
    do {
        round++;
        CHECK(!tcgetattr(pair.slave, &termios));
        termios.c_iflag = round & 1 ? IXON | IUTF8 | ICRNL : IXANY | INLCR;
        termios.c_oflag = round & 2 ? OPOST | ONLCR | TAB3 : 0;
        termios.c_lflag = round & 4 ? ISIG | ICANON | ECHO | ECHOE | ECHOK | IEXTEN : ISIG | ECHONL;
        termios.c_cc[VINTR] = (cc_t)round;
        termios.c_cc[VMIN] = (cc_t)(round * 3);
        termios.c_cc[VTIME] = (cc_t)(round * 5);
        cfsetspeed(&termios, round & 8 ? B9600 : B115200);
        CHECK(!tcsetattr(pair.slave, TCSANOW, &termios));
        CHECK(!tcgetattr(pair.slave, &termios));
        struct winsize window = {(unsigned short)round, (unsigned short)(round * 2), 3, 4}, now;
        CHECK(!ioctl(pair.master, TIOCSWINSZ, &window));
        more = go_on();
        struct termios after;
        CHECK(!tcgetattr(pair.slave, &after));
        CHECK_EQUAL(after.c_iflag, termios.c_iflag);
        CHECK_EQUAL(after.c_oflag, termios.c_oflag);
        CHECK_EQUAL(after.c_cflag, termios.c_cflag);
        CHECK_EQUAL(after.c_lflag, termios.c_lflag);
        for (int at = 0; at < 17; at++) CHECK_EQUAL(after.c_cc[at], termios.c_cc[at]);
        CHECK_EQUAL(cfgetispeed(&after), cfgetispeed(&termios));
        CHECK_EQUAL(cfgetospeed(&after), cfgetospeed(&termios));
        CHECK(!ioctl(pair.slave, TIOCGWINSZ, &now));
        CHECK(!memcmp(&window, &now, sizeof now));
    } while (more);
    char name[32];
    CHECK(!ptsname_r(pair.master, name, sizeof name) && !strcmp(name, pair.name));
    struct stat node;
    CHECK(!stat(name, &node));
    CHECK_EQUAL(node.st_uid, 12);
    CHECK_EQUAL(node.st_gid, 34);
    CHECK_EQUAL(node.st_mode & 07777, 0604);
    int exclusive = 0;
    CHECK(!ioctl(pair.slave, TIOCGEXCL, &exclusive) && exclusive);
    CHECK(ttyname(pair.slave) && !strcmp(ttyname(pair.slave), pair.name));
    PASS();
}
