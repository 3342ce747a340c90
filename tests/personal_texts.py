"""Texts with personal data, marked, and texts without; numbers are examples of their standards, of issuers for tests, or invented."""

from __future__ import annotations

import itertools

# What is found stands between ⟦ and ⟧.
FOUND = {
    "email": (
        "Write to ⟦jane.doe+list@mail.example.co.uk⟧.",
        "邮箱是⟦zhang_san@163.com⟧，请联系",
        "请发到⟦zhang@example.com⟧谢谢",
        "<⟦a@b.io⟧> '⟦o'brien@b.ie⟧', -⟦c@d.org⟧",
        "mailto:⟦x@y.xn--p1ai⟧?subject=1",
        "全角⟦ｌｉ＠ｅｘａｍｐｌｅ．ｃｏｍ⟧。",
    ),
    "url_credentials": (
        "clone ⟦https://bob:s3cret@git.example.com/x.git⟧, then build",
        "DB=⟦postgres://user:p@ss@10.1.2.3:5432/db⟧",
        "(⟦https://api.example.com/v1?user=3&api_key=Zx81⟧)",
        "访问⟦https://example.com/cb#access_token=abc⟧登录",
        "⟦www.example.com/login?Password=hunter2&x=1⟧ is bad; ⟦https://h.example/?X-Amz-Signature=9f8⟧.",
        "⟦http://h.example/a?accessToken=1⟧ ⟦http://h.example/a?AWS_ACCESS_KEY_ID=AK⟧",
    ),
    "iban": (
        "IBAN ⟦GB82WEST12345698765432⟧.",
        "账号⟦DE89 3704 0044 0532 0130 00⟧的户主",
        "to ⟦ES91 2100 0418 4502 0005 1332⟧ with thanks",
        "lower ⟦gb82west12345698765432⟧ or ⟦NO93-8601-1117-947⟧",
    ),
    "chinese_id": (
        "身份证号⟦11010519491231002X⟧，男",
        "他的号码是⟦440524188001010014⟧。",
        "ID: ⟦110105 19491231 002x⟧",
        "全角⟦１１０１０５１９４９１２３１００２Ｘ⟧号",
    ),
    "card": (
        "card 12 ⟦4111 1111 1111 1111⟧ 123",
        "卡号⟦6212345678900000003⟧已挂失",
        "⟦5555-5555-5555-4444⟧, ⟦378282246310005⟧, ⟦3782 822463 10005⟧",
        "⟦3056 930902 5904⟧ ⟦6011111111111117⟧ ⟦3530111333300000⟧ ⟦2223003122003222⟧",
        "my card ⟦4222222222222⟧ and Maestro ⟦501800000009⟧",
        "1234 ⟦4111 1111 1111 1111⟧",
        "卡号４⟦４１１１１１１１１１１１１１１１⟧".replace("４⟦", "⟦"),
    ),
    "ssn": (
        "SSN ⟦078-05-1120⟧.",
        "我的社会安全号码是⟦123 45 6789⟧。",
        "His social security number is ⟦123456789⟧",
    ),
    "ip": (
        "ping ⟦192.168.10.7⟧:8080 or http://⟦93.184.216.34⟧/x",
        "服务器⟦203.0.113.9⟧无法访问",
        "⟦10.0.0.1⟧ is the gateway of ⟦10.0.0.0⟧/8; ⟦8.8.8.8⟧",
        "over ⟦2001:db8::8a2e:370:7334⟧: fine, [⟦fe80::1⟧]",
        "⟦2001:0db8:85a3:0000:0000:8a2e:0370:7334⟧",
        "⟦1.2.3.4⟧\n⟦120.7.8.9⟧ is where a log begins",
    ),
    "phone": (
        "Call ⟦(212) 684-4700⟧ or ⟦212-684-4700 ext. 12⟧.",
        "手机⟦13812345678⟧，请回电",
        "请拨打⟦010-62345678⟧或⟦(010)62345678⟧或⟦400-820-8820⟧咨询",
        "联系他⟦138-1234-5678⟧谢谢，备用⟦139 1234 5678⟧。",
        "国际⟦+86 138 1234 5678⟧与⟦+442079460018⟧",
        "⟦+33 1 42 68 53 00⟧ and ⟦212.684.4700⟧",
        "1.⟦138-1234-5678⟧, 2.⟦212-684-4700⟧.",
        "invented: ⟦+1-555-123-4567⟧, ⟦555-123-4567⟧, (⟦1-800-555-0199⟧)",
        "tel: ⟦9494987771⟧, 电话：⟦62345678⟧",
        "全角⟦１３８１２３４５６７８⟧号",
        "**⟦13812345678⟧**、⟦13987654321⟧/⟦13712345678⟧",
    ),
}

NOT_FOUND = (
    # emails and URLs
    "git@github.com:org/repo.git, @decorator, a @ b.com, A@B, x@y.z, 张三@例子",
    "https://example.com/?q=token&page=2 http://user@host/ ftp://host:21/ ?api_key= https://u:{password}@h https://h/?token={TOKEN}",
    # cards: Luhn, issuer, length; sums of thirteen digits; decimals
    "4111 1111 1111 1112 9111111111111111 411111111111111 4242-4242 4242-4242",
    "1646615806005 + 2566267207 = 4212883012996, 0.4111111111111111 4111111111111111.5 x4111111111111111",
    # IBANs: check digits, length, country
    "GB82WEST12345698765433 GB82WEST1234569876543 ZZ82WEST12345698765432 GB82WEST123456987654321 GB82-WEST 1234 5698 7654 32",
    "GB82 WEST1 234 5698 7654 32",
    # Chinese identity numbers: check character, date, province, length, a letter before
    "110105194912310021 11010519490231002X 990105194912310021 11010519491231002 A11010519491231002X 110105194912310020",
    # social security numbers
    "000-12-3456 666-12-3456 912-12-3456 123-00-4567 123-45-0000 1123-45-6789 123-45-67890 123 45 6789 123456789",
    # addresses: versions, sections, masks, nobody's
    "version 1.2.3.4, v1.2.3.4, Version: 10.0.19.1 and 版本号1.2.3.4; Chrome/80.0.39.88 pip install x==1.2.3.4 tool-1.2.3.4.zip",
    "see section 2.3.1.4 and § 4.5.6.7, 第1.2.3.4节, 见2.2.2.2节",
    "1.2.3.1 Introduction\n## 1.2.3.2 方法\n 2.1.1.1  6306 texts",
    "127.0.0.1 0.0.0.0 0.0.0.255 255.255.255.0 224.0.0.1 256.1.1.1 1.2.3 1.2.3.4.5 01.02.03.04 ::1 :: x[1::2] a[::2] std::dead::beef",
    "12:30:45 ab:cd:ef:01:23:45 cafe::add 7528:5306::4673: 0123:4567 01:23:45:67:89:ab:cd:ef",
    # phones: dates, arithmetic, decimals, books, addresses, tables
    "on 2023-05-19, 2023-05-19 08:30, 19.05.2023, 05/19/2023, 20230519 and 1990-1995; 二〇二三年2023年05月19日",
    "contact us before 2023-05-19, phone us in 1990-1995, call by 20230519",
    "1234567890 + 2125551234 = 3360119024; 2147483647; 3, 7, 11, 15; 1 2 3 4 5 6 7 8 9 10; 72 73 74 75 76; 1001101000",
    "123456 * 123456 = 15241383936 15241383936 / 2 = 7620691968 and 84834150134 - 15241383936",
    "= 15241383936\n+ 15241383936 = 1, 3 + 15241383936",
    "53.13010235, 14.285714285, 0.2125551234, 10.2857142857, -74.0060152, 40.7127281, 1.234.567,89, $2125551234, 1,234,567,890",
    "ISBN 978-3-16-148410-0, ISBN-10: 0-306-40615-2, ISBN 212-555-2368, pp. 211-227 (2003), 2011) 179-220, 352/6286/663",
    "20000(11/10)4 - 20000(6/5)2, (40320/65536), 16√524 + 1492 - 250.0521, (100000 - 5038) × 5000",
    "6556 106 Rue, 17151 2450 Crown St, 90010-170, 86.0.4240.111, 3    15    3    7    8    6   11    9",
    "0.13812345678, 7.15241383936, 13812345678.5, 2+12145558444, 3 +12145558444",
    "the phone costs 1.234.567 or 12.345.678 yen, 3 15 3 7 8 6 11 9",
    "reach 1000000 people, abc2126844700, 2126844700def",
)


def parse(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and the places that were marked."""
    pieces = marked.replace("⟧", "⟦").split("⟦")
    edges = list(itertools.accumulate(map(len, pieces), initial=0))
    return "".join(pieces), [(edges[i], edges[i + 1]) for i in range(1, len(pieces), 2)]
